"""What an earlier deploy() found right → a module, without the steps between export and engine, or without the export.

Enters: a request, and the cache. Leaves: an engine that was judged anew against PyTorch, or None, and then the long
road is taken. A room of its own because what must be equal for a shortcut to be the same road is settled here, once.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from torch2engine.artifact.cache import CacheNote, EngineCache, hash_facts
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import encode_non_finite
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.builder.engine_request import EngineRequest, build_environment, current_driver
from torch2engine.builder.onnx_fingerprint import refittable_fingerprint
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.core.config import BuildConfig, Precision, RuntimeConfig, Tolerance
from torch2engine.core.errors import InputError, InstallationError, Torch2EngineError
from torch2engine.core.precisions import QUANTIZED_PRECISIONS
from torch2engine.modules.deployed import attach_model
from torch2engine.modules.judge import judge
from torch2engine.modules.trt.module import TRTModule
from torch2engine.parity.report import ParityReport
from torch2engine.pipeline.report import Phases
from torch2engine.pipeline.stages import prove_split, target_device
from torch2engine.precision.graph.multiply_adds import PrecisionReport
from torch2engine.precision.graph.outcome import PrecisionOutcome
from torch2engine.precision.parity_cases import cast_case, parity_cases_for, tolerance_for

__all__ = ["Recall"]

_LIBRARIES = ("ml-dtypes", "nvidia-modelopt", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")
_OTHER_WEIGHTS = "what stays in float32 was chosen for the weights that were deployed first; these are others"
_FOUND = "engine and graph were made before and come from the cache; the graph was compared with ONNX Runtime then"

Examples: TypeAlias = "tuple[Sequence[ParityCase], Sequence[str]]"


@dataclass
class Recall:
    """A request to deploy, as far as it says which engine may answer it.

    Args:
        cache: None finds nothing.
        model: unwrapped.
        asked: the precision.
        tolerance, config, runtime_config: as deploy has them.
        calibrated: whether calibration data were given, which nobody has read yet.
        phases: takes the seconds.
    """

    cache: EngineCache | None
    model: nn.Module
    asked: Precision
    tolerance: Tolerance | None
    config: BuildConfig
    runtime_config: RuntimeConfig
    calibrated: bool
    phases: Phases

    def __post_init__(self) -> None:
        budget = self.asked.budget
        if budget is not None and budget.metric is not None:  # which has to see the engine's answers to its batches
            self.cache = None
        self._keys: list[str] = []
        self._hashing: threading.Thread | None = None

    @property
    def kept(self) -> nn.Module | None:
        """The model, where it is to answer what the engine can't."""
        return self.model if self.runtime_config.out_of_range == "eager" else None

    def by_key(self, cache_key: str | None, captured: CapturedCall) -> TRTModule | None:
        """The module of an earlier deploy under the same cache_key; run it inside `undisturbed`.

        Args:
            cache_key: the caller's word for the model's code and for calibration data.
            captured: the model's call.
        """
        if cache_key is None or self.cache is None:
            return None
        with self.phases("recall"):
            facts = self._promised(cache_key)
            found = None if facts is None else self._find(facts, captured)
        return None if found is None else self._answering(found, captured, make_parity_cases(captured))

    def exported(self, artifact: OnnxArtifact) -> OnnxArtifact:
        """What was exported; its files are hashed while the GPU answers the cases."""
        if self.cache is not None and not self.calibrated and not self.config.refittable:
            self._hashing = threading.Thread(target=_hashed, args=(artifact,), name="torch2engine hash", daemon=True)
            self._hashing.start()
        return artifact

    def by_graph(self, artifact: OnnxArtifact, captured: CapturedCall, examples: Examples) -> TRTModule | None:
        """The module of an earlier deploy whose export came out the same, remarks such as source lines included.

        Args:
            artifact: what was exported now. If the engine is to be refitted, its weights' values don't matter.
            captured: the model's call.
            examples: the cases that the engine is judged on, and notes on them.
        """
        if self.calibrated or self.cache is None:  # nobody knows whether the data are the same
            return None
        with self.phases("recall"):
            if self._hashing is not None:
                self._hashing.join()
            found = self._find(self._exported(artifact), captured)
        return None if found is None else self._answering(found, captured, examples)

    def keep(
        self,
        wanted: EngineRequest,
        module: TRTModule,
        built: EngineArtifact,
        outcome: PrecisionOutcome | None,
        computed: PrecisionReport | None,
        notes: Sequence[str],
    ) -> None:
        """Keep the engine that the long road led to, and note it for whoever asks the same again.

        Args:
            wanted: knows where.
            module: with the weights, and kernels, that it has now.
            built: as it was built or found.
            outcome, computed, notes: for the report.
        """
        engine = module.compiled()
        if self.runtime_config.kernel_specialization != "none":  # who takes it may not want kernels for these shapes
            engine = engine.with_runtime_cache(built.read_runtime_cache())
        wanted.store(engine)
        facts: dict[str, Any] = {
            "outcome": None if outcome is None else outcome.to_json(),
            "computed": None if computed is None else computed.to_json(),
            "notes": list(notes),
        }
        for key in self._keys:
            assert self.cache is not None, "only a cache gives keys"
            self.cache.write_note(key, CacheNote(wanted.cache_key, facts))

    def _find(self, facts: Mapping[str, Any], captured: CapturedCall) -> _Found | None:
        assert self.cache is not None, "the callers look"
        with torch.cuda.device(target_device(captured)):  # whose facts are in the key
            key = hash_facts({**self._request(captured), **facts})
            self._keys.append(key)
            note = self.cache.read_note(key)
            engine = None if note is None else self.cache.take(note.engine_key)
            if note is None or engine is None or engine.onnx_path is None or engine.hardware.driver != current_driver():
                return None
        general = self.runtime_config.kernel_specialization == "none" and engine.hardware.flavour == "tensorrt_rtx"
        if general and not engine.read_runtime_cache():
            return None  # as with another driver, the long road has kernels compiled and keeps them
        return _Found(key, engine, note.facts)

    def _answering(self, found: _Found, captured: CapturedCall, examples: Examples) -> TRTModule | None:
        """The engine in the model's place, if it answers like the model."""
        assert self.cache is not None, "something was found in it"
        try:
            with self.phases("parity"):
                module, report, parts = self._judged(found, captured, examples)
        except (InputError, InstallationError):
            raise
        except Torch2EngineError as error:
            self.cache.remove_note(found.key)
            text = f"an engine that was found for this request is not taken, and the model is deployed anew: {error}"
            warnings.warn(text, stacklevel=4)
            return None
        self.cache.refresh_note(found.key)
        module.report = self.phases.report([report], *parts)
        module.trim()
        return module

    def _judged(
        self, found: _Found, captured: CapturedCall, examples: Examples
    ) -> tuple[TRTModule, ParityReport, tuple[Any, ...]]:
        """The module with the model's weights, and what is to be told of it.

        Raises:
            ParityError, RefitError: it does not answer like the model.
        """
        (judged, remarks), bounds, engine, facts = examples, self.tolerance, found.engine, found.facts
        outcome = None if facts["outcome"] is None else PrecisionOutcome.from_json(facts["outcome"])
        asked = self.asked if outcome is None else replace(self.asked, dtype=outcome.dtype)
        notes = (*captured.notes, *facts["notes"])
        if outcome is not None:  # the graph was lowered
            judged = [cast_case(one, engine.signature, asked.dtype) for one in parity_cases_for(asked.dtype, judged)]
            bounds = tolerance_for(asked, bounds)
        target = target_device(captured)
        module = TRTModule(engine, None, None, self.runtime_config, self.kept).bind(target)
        if WEIGHTS in engine.files:
            samples = [(case.name, case.inputs) for case in judged]
            changed = attach_model(module, self.model, samples, bounds, onnx_is_current=False)
            notes = (*notes, _OTHER_WEIGHTS) if changed and outcome is not None else notes
        report = judge(module, judged, bounds, remarks).raise_if_failed()
        notes = (*notes, *prove_split(module, judged, self.tolerance))
        computed = None if facts["computed"] is None else PrecisionReport.from_json(facts["computed"])
        parts = (module.precision, (*notes, _FOUND), module.memory_bytes, outcome, computed)
        return module, report, parts

    # What a request is known by.

    def _promised(self, cache_key: str) -> dict[str, Any] | None:
        """What tells a model from others, if the caller's key tells its code; None for tensors that can't be read."""
        # Every tensor, so that a key that is used for two models, or for other weights, finds nothing.
        tensors = dict(self.model.named_parameters(remove_duplicate=False))
        tensors |= dict(self.model.named_buffers(remove_duplicate=False))
        modules: dict[str, nn.Module] = dict(cast("Iterable[tuple[str, nn.Module]]", self.model.named_modules()))
        loose = {
            f"{path}:{name}": value
            for path, module in modules.items()
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
        if not all(map(_is_plain, (*tensors.values(), *loose.values()))):
            return None
        refits = self.config.refittable
        return {
            "cache_key": cache_key,
            "modules": {path: _settings(module) for path, module in modules.items()},
            "tensors": {path: [list(one.shape), str(one.dtype)] for path, one in (tensors | loose).items()},
            "values": fingerprints(loose if refits else tensors | loose),
        }

    def _exported(self, artifact: OnnxArtifact) -> dict[str, Any]:
        """What tells an exported model from others."""
        if self.config.refittable:
            graph = refittable_fingerprint(artifact)
        else:
            graph = {name: entry["sha256"] for name, entry in artifact.manifest()["files"].items()}
        return {"graph": graph, "precision": artifact.precision}

    def _request(self, captured: CapturedCall) -> dict[str, Any]:
        """Everything but the model itself that decides about the graph that is built, and what is built of it."""
        bounds, signature = self.tolerance, captured.signature
        outputs = [[spec.name, spec.dtype] for spec in signature.outputs]  # their shapes follow from the sample's
        axes = {name: {str(dim): axis for dim, axis in found.items()} for name, found in captured.output_axes.items()}
        return {
            **build_environment(self.config),
            "signature": encode_non_finite(replace(signature, outputs=()).to_json()),
            "outputs": [outputs, axes],
            "profiles": [profile.to_json() for profile in captured.profiles],
            "asked": asdict(self.asked),
            "calibrated": self.calibrated,
            "sample": None if self.calibrated else self._scale(captured.sample),
            "tolerance": None if bounds is None else asdict(bounds),
            "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        }

    def _scale(self, sample: Sequence[torch.Tensor]) -> list[Any] | None:
        """What a graph's lowering takes from the sample, where there are no calibration data.

        Its values are the ranges of "int8" and "fp8"; of the others they say what may overflow, and there it counts
        within which power of two they lie, so that a fresh random sample of the same kind finds the same.
        """
        if not self.asked.changes_graph:
            return None
        if self.asked.dtype in QUANTIZED_PRECISIONS or self.asked.weights is not None:
            return [fingerprints({"": leaf})[""] for leaf in sample]
        floats = [leaf for leaf in sample if leaf.is_floating_point() and leaf.numel()]
        return [math.frexp(float(leaf.abs().max()))[1] for leaf in floats]


@dataclass(frozen=True)
class _Found:
    """An engine of an earlier deploy: the request's key, the engine, and what was noted of it."""

    key: str
    engine: EngineArtifact
    facts: Mapping[str, Any]


def _hashed(artifact: OnnxArtifact) -> None:
    with suppress(Torch2EngineError):  # who needs the hashes asks again, and hears it
        artifact.manifest()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its values are bits in memory."""
    known = type(tensor) in (torch.Tensor, nn.Parameter)
    return known and tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)


def _settings(module: nn.Module) -> list[Any]:
    """A module's class, and the plain values among its attributes."""
    found = {name: repr(value) for name, value in vars(module).items() if name != "training" and _is_setting(value)}
    return [f"{type(module).__module__}.{type(module).__qualname__}", found]


def _is_setting(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_setting, cast("Sequence[object]", value)))
    return isinstance(value, (type(None), bool, int, float, str))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
