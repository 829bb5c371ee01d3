"""What an earlier deploy() found right → a module, without the steps between export and engine, or without the export.

Enters: a request, and the cache. Leaves: an engine that was judged anew against PyTorch, or None, and then the long
road is taken. A room of its own because what must be equal for a shortcut to be the same road is settled here, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from torch2engine._build_source import without_values
from torch2engine._fingerprint import fingerprints
from torch2engine._lowered import as_typed, bounds_of, judged_on
from torch2engine._manifest import packed
from torch2engine.artifact import WEIGHTS, EngineArtifact, OnnxArtifact
from torch2engine.build import Wanted, circumstances, driver
from torch2engine.cache import EngineCache, key_of
from torch2engine.cases import Case, cases
from torch2engine.config import BuildConfig, Precision, RuntimeConfig, Tolerance
from torch2engine.errors import InputError, InstallationError, Torch2EngineError
from torch2engine.lowering import Lowered
from torch2engine.module import TRTModule
from torch2engine.parity import ParityReport
from torch2engine.precision.outcome import PrecisionOutcome
from torch2engine.precision.shares import PrecisionReport
from torch2engine.reference import Captured
from torch2engine.report import Phases
from torch2engine.stages import judge, precision_notes, prove_split, target_device

__all__ = ["Recall"]

_LIBRARIES = ("nvidia-modelopt", "onnx", "onnxruntime", "onnxscript", "torch")
_FOUND = "engine and graph were made before and come from the cache; the graph was compared with ONNX Runtime then"


@dataclass(frozen=True)
class _Found:
    """A module that answers like the model, and what is to be told of it."""

    module: TRTModule
    parity: ParityReport
    notes: tuple[str, ...]
    outcome: PrecisionOutcome | None
    computed: PrecisionReport | None

    def __call__(self, phases: Phases) -> TRTModule:
        """The module, with its report."""
        module = self.module
        facts = (module.precision, self.notes, module.memory_bytes, self.outcome, self.computed)
        module.report = phases.report([self.parity], *facts)
        module.trim()
        return module


@dataclass
class Recall:
    """A request to deploy, as far as it says which engine may answer it.

    Args:
        cache: None finds nothing.
        model: unwrapped.
        asked: the precision.
        tolerance, config, runtime_config: as deploy has them.
        phases: takes the seconds.
    """

    cache: EngineCache | None
    model: nn.Module
    asked: Precision
    tolerance: Tolerance | None
    config: BuildConfig
    runtime_config: RuntimeConfig
    phases: Phases

    def __post_init__(self) -> None:
        budget = self.asked.budget
        if budget is not None and budget.metric is not None:  # which has to see the engine's answers to its batches
            self.cache = None
        self._keys: list[str] = []

    @property
    def kept(self) -> nn.Module | None:
        """The model, where it is to answer what the engine can't."""
        return self.model if self.runtime_config.out_of_range == "eager" else None

    def by_key(self, cache_key: str, captured: Captured) -> TRTModule | None:
        """The module of an earlier deploy under the same cache_key; run it inside `undisturbed`.

        Args:
            cache_key: the caller's word for the model's code and for calibration data.
            captured: the model's call.
        """
        if self.cache is None:
            return None
        with self.phases("recall"):
            found = self._find(self._promised(cache_key), captured, None)
        return None if found is None else found(self.phases)

    def by_graph(self, artifact: OnnxArtifact, captured: Captured, examples: Sequence[Case]) -> TRTModule | None:
        """The module of an earlier deploy whose export came out the same, remarks such as source lines included.

        Args:
            artifact: what was exported now. If the engine is to be refitted, its weights' values don't matter.
            captured: as for `by_key`.
            examples: the cases that the engine is judged on.
        """
        if self.cache is None:
            return None
        with self.phases("recall"):
            found = self._find(self._exported(artifact), captured, examples)
        return None if found is None else found(self.phases)

    def keep(self, wanted: Wanted, low: Lowered, computed: PrecisionReport | None, notes: Sequence[str]) -> None:
        """Note what the long road led to, for whoever asks the same again."""
        facts: dict[str, Any] = {
            "precision": low.artifact.precision,
            "outcome": None if low.outcome is None else low.outcome.to_json(),
            "computed": None if computed is None else computed.to_json(),
            "notes": list(notes),
        }
        for key in self._keys:
            assert self.cache is not None, "only a cache gives keys"
            self.cache.note(key, wanted.key, facts)

    def _find(self, facts: Mapping[str, Any], captured: Captured, examples: Sequence[Case] | None) -> _Found | None:
        assert self.cache is not None, "the callers look"
        with torch.cuda.device(target := target_device(captured)):  # whose facts are in the key
            key = key_of({**self._request(captured), **facts})
            self._keys.append(key)
            noted = self.cache.noted(key)
            engine = None if noted is None else self.cache.take(noted[0])
            # The long road has kernels compiled anew that another driver made.
            if noted is None or engine is None or engine.onnx_path is None or engine.hardware.driver != driver():
                return None
        try:
            low = self._low(engine, noted[1], cases(captured)[0] if examples is None else examples)
            module = TRTModule(engine, None, None, self.runtime_config, self.kept).bind(target)
            return self._judged(module, low, noted[1], captured.notes)
        except (InputError, InstallationError):
            raise
        except Torch2EngineError as error:
            self.cache.forget(key)
            text = f"an engine that was found for this request is not taken, and the model is deployed anew: {error}"
            warnings.warn(text, stacklevel=4)
            return None

    def _promised(self, cache_key: str) -> dict[str, Any]:
        """What tells a model from others, if the caller's key tells its code."""
        # Every tensor, so that a key that is used for two models, or for other weights, finds nothing.
        tensors = dict(self.model.named_parameters(remove_duplicate=False))
        tensors |= dict(self.model.named_buffers(remove_duplicate=False))
        return {
            "cache_key": cache_key,
            "model": f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            "structure": {path: [list(tensor.shape), str(tensor.dtype)] for path, tensor in tensors.items()},
            "values": None if self.config.refittable else fingerprints(tensors),
        }

    def _exported(self, artifact: OnnxArtifact) -> dict[str, Any]:
        """What tells an exported model from others."""
        files = artifact.manifest()["files"]
        graph = {name: entry["sha256"] for name, entry in files.items()}
        return {
            "graph": without_values(artifact) if self.config.refittable else graph,
            "precision": artifact.precision,
        }

    def _request(self, captured: Captured) -> dict[str, Any]:
        """Everything but the model itself that decides about the graph that is built, and what is built of it."""
        bounds = self.tolerance
        return {
            **circumstances(self.config),
            "signature": packed(captured.signature.to_json()),
            "profiles": [profile.to_json() for profile in captured.profiles],
            "asked": asdict(self.asked),
            "tolerance": None if bounds is None else asdict(bounds),
            "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        }

    def _judged(self, module: TRTModule, low: Lowered, facts: Mapping[str, Any], notes: Sequence[str]) -> _Found:
        """The module with the model's weights, if it answers like the model.

        Raises:
            ParityError, RefitError: it does not.
        """
        if WEIGHTS in low.artifact.files:
            samples = [(example.name, example.inputs) for example in low.examples]
            module.own_earlier(self.model, samples, low.tolerance)
        report = judge(module, low.examples, low.tolerance).raise_if_failed()
        notes = (*notes, *facts["notes"], *prove_split(module, low.examples, self.tolerance))
        notes = (*notes, *precision_notes(self.asked.dtype, module, 6), _FOUND)
        computed = None if facts["computed"] is None else PrecisionReport.from_json(facts["computed"])
        return _Found(module, report, notes, low.outcome, computed)

    def _low(self, engine: EngineArtifact, facts: Mapping[str, Any], examples: Sequence[Case]) -> Lowered:
        artifact = OnnxArtifact(
            engine.folder,
            owner=engine,
            signature=engine.signature,
            profiles=engine.profiles,
            precision=facts["precision"],
            versions=engine.versions,
        )
        if facts["outcome"] is None:  # the graph as it was exported
            return Lowered(artifact, examples, self.tolerance)
        judged = judged_on(examples, self.asked)
        examples = [as_typed(example, engine.signature, self.asked.dtype) for example in judged]
        outcome = PrecisionOutcome.from_json(facts["outcome"])
        return Lowered(artifact, examples, bounds_of(self.asked, self.tolerance), outcome)


def _version(library: str) -> str:
    with suppress(PackageNotFoundError):
        return version(library)
    return ""
