"""`OnnxArtifact`, or an ONNX file from anywhere → `EngineArtifact`.

Enters: a model in ONNX, profiles, a BuildConfig. Leaves: a plan in a scratch folder, with the signature it answers to
and the hardware it was built on. A room of its own because here minutes pass and memory fills: one build at a time,
with progress, an end at Ctrl-C, and every failure in TensorRT's own words.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch2engine import device, trt
from torch2engine._build_plan import PlanFacts, PlanRequest
from torch2engine._build_process import compile_in_child
from torch2engine._build_source import Profiles, Source, resolve
from torch2engine._version import __version__
from torch2engine.artifact import EngineArtifact, Hardware, OnnxArtifact, ScratchFolder, scratch_folder
from torch2engine.cache import Cache, EngineCache, cache_of, key_of
from torch2engine.config import BuildConfig, float32_arithmetic
from torch2engine.errors import Torch2EngineError
from torch2engine.progress import Progress, Report, Reporter, reporting
from torch2engine.spec import Profile

__all__ = ["Built", "build", "obtain"]

_DEFAULTS = BuildConfig()
# Builders that run side by side disturb each other's timings and double the memory needed.
_LOCK = threading.Lock()


def build(
    source: OnnxArtifact | str | Path,
    profiles: Profiles = None,
    *,
    precision: str | None = None,
    config: BuildConfig = _DEFAULTS,
    cache: Cache = None,
    progress: Progress = None,
) -> EngineArtifact:
    """Build a TensorRT engine.

    Args:
        source: an OnnxArtifact, or the path of an ONNX file; its inputs and outputs become the signature's by name.
        profiles: (min, opt, max) for every dynamic axis, e.g. ``{"batch": (1, 8, 32)}``, or a list of such; an ONNX
            dimension's name is the axis's, an unnamed one is called ``"<input>_dim_<position>"``. None means the
            artifact's own.
        precision: "fp32" or "tf32" for float32 matrix products; the dtypes themselves are the graph's. None means the
            artifact's own, and "fp32" for a file. The engine's `precision` says what it really computes in:
            TensorRT-RTX uses TF32 unless NVIDIA_TF32_OVERRIDE=0 is in the environment when Python starts.
        config: flavour and limits.
        cache: True for the user's cache of engines, a folder, or an `EngineCache`: an engine that was built before from
            the same bytes for the same profiles, precision, config, GPU and TensorRT is taken from there.
        progress: True for a bar on the terminal, or a callable that is given (phase, step, steps, seconds) and returns
            False to cancel; what it raises ends the build and is raised here.

    Returns:
        the engine in a scratch folder; it lives as long as the artifact, or as `save` put it.

    Raises:
        InstallationError: no usable TensorRT.
        ArtifactError: the file is missing or not ONNX.
        InputError, DtypeError, DynamicAxisError: an input, output or profile that can't be had.
        UnsupportedOperatorError: lists every node that TensorRT can't build.
        BuildError: TensorRT failed; `log` holds its lines, `out_of_memory` tells whether they name memory.
    """
    return obtain(source, profiles, precision=precision, config=config, cache=cache, progress=progress).engine


@dataclass(frozen=True)
class Built:
    """An engine and where it came from.

    Args:
        engine: the engine.
        cache: where it is kept; None for nowhere.
        key: of its entry.
        found: whether it was there already.
    """

    engine: EngineArtifact
    cache: EngineCache | None = None
    key: str = ""
    found: bool = False

    @contextmanager
    def proving(self) -> Generator[None]:
        """Forget the entry if the body fails: what was found wrong is not to be found again."""
        try:
            yield
        except Torch2EngineError:
            if self.cache is not None:
                self.cache.remove(self.key)
            raise

    def keep(self, engine: EngineArtifact) -> None:
        """Keep the engine as it is now, with kernels compiled since, unless its entry has some already."""
        if self.cache is not None and engine.read_runtime_cache() and not self.engine.read_runtime_cache():
            self.cache.update(self.key, engine)


def obtain(
    source: OnnxArtifact | str | Path,
    profiles: Profiles = None,
    *,
    precision: str | None = None,
    config: BuildConfig = _DEFAULTS,
    cache: Cache = None,
    progress: Progress = None,
) -> Built:
    """As `build`, and tell where the engine came from."""
    store = cache_of(cache)
    with reporting(progress) as report:
        model = resolve(source, profiles, precision)
        make = _maker(model, config, report)
        if store is None:
            return Built(make())
        key = key_of(_facts(model, config))
        engine, found = store.engine(key, make)
        return Built(engine, store, key, found)


def _maker(model: Source, config: BuildConfig, report: Report | None) -> Callable[[], EngineArtifact]:
    def make() -> EngineArtifact:
        owner = scratch_folder()
        folder = Path(owner.path)
        request = PlanRequest(
            onnx_path=str(model.artifact.onnx_path),
            plan_path=str(folder / "model.plan"),
            signature=model.signature,
            profiles=model.profiles or (Profile({}),),
            precision=model.precision,
            flavour=config.flavour,
            workspace_bytes=config.workspace_bytes,
            gpu_index=device.current_index(),
            log_level=logging.getLogger("torch2engine.tensorrt").getEffectiveLevel(),
            progress=report is not None,
        )
        with _LOCK:
            facts = compile_in_child(request, Reporter("build", report))
        return _artifact(model, owner, facts)

    return make


def _facts(model: Source, config: BuildConfig) -> dict[str, Any]:
    """Everything that decides what TensorRT makes.

    The driver is not in it: a plan runs under every driver, and compiled kernels that another one made are not taken.
    """
    rt = trt.find(config.flavour)
    gpus, index = device.gpus(), device.current_index() or 0
    gpu = gpus[index] if index < len(gpus) else None
    return {
        "torch2engine": __version__,
        "onnx": model.artifact.manifest()["files"],  # whole bytes by their SHA-256: node arguments and weights too
        "signature": model.signature.to_json(),
        "profiles": [profile.to_json() for profile in model.profiles],
        "precision": float32_arithmetic(rt.name, model.precision),
        "asked": model.precision,
        "config": asdict(config),
        "flavour": [rt.name, rt.version],
        "gpu": None if gpu is None else [gpu.name, list(gpu.compute_capability)],
    }


def _artifact(model: Source, owner: ScratchFolder, facts: PlanFacts) -> EngineArtifact:
    capability = facts.compute_capability
    hardware = Hardware(
        flavour=facts.flavour,
        flavour_version=facts.flavour_version,
        gpu=facts.gpu,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        driver=facts.driver,
    )
    return EngineArtifact.from_onnx(
        model.artifact,
        owner.path,
        hardware=hardware,
        signature=model.signature,
        profiles=model.profiles,
        precision=float32_arithmetic(facts.flavour, model.precision),
        versions={facts.flavour: facts.flavour_version},
        owner=owner,
    )
