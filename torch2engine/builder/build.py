"""`OnnxArtifact`, or an ONNX file from anywhere → `EngineArtifact`.

Enters: a model in ONNX, profiles, a BuildConfig. Leaves: a plan in a scratch folder, with the signature it answers to
and the hardware it was built on. A room of its own because here minutes pass and memory fills: one build at a time,
with progress, an end at Ctrl-C, and every failure in TensorRT's own words.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch2engine.artifact.cache import Cache, EngineCache, hash_facts, resolve_cache
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest import Hardware, encode_non_finite
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import ScratchFolder, scratch_folder
from torch2engine.builder.child_process import compile_in_child
from torch2engine.builder.plan import PlanRequest
from torch2engine.builder.source import Profiles, Source, fingerprint, resolve
from torch2engine.core.config import BuildConfig, float32_arithmetic, tf32_override
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.core.progress import Progress, Report, Reporter, reporting
from torch2engine.core.spec import Profile
from torch2engine.core.version import __version__
from torch2engine.trt.gpu import Gpu, current_gpu_index, list_gpus
from torch2engine.trt.library import find_tensorrt

__all__ = ["Wanted", "build", "circumstances", "driver", "obtaining"]

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
    with obtaining(source, profiles, precision=precision, config=config, cache=cache, progress=progress) as wanted:
        engine = wanted()
        wanted.keep(engine.without_onnx())  # whoever wants it again has the file
    return engine


class Wanted:
    """An engine that is found or built when this is called, and kept when its caller finds it right.

    Args:
        model: what to build from.
        config: how.
        cache: where it may be; None for nowhere.
        report: of the build's progress.
        refits: whether who gets a refittable engine refits it, so that its weights may be others.
    """

    def __init__(
        self, model: Source, config: BuildConfig, cache: EngineCache | None, report: Report | None, refits: bool
    ) -> None:
        self._model, self._config, self._cache, self._report = model, config, cache, report
        self._refits = refits and config.refittable
        self._here = ""
        self._held = ExitStack()
        self._found: EngineArtifact | None = None

    def __call__(self) -> EngineArtifact:
        """The engine."""
        if self._cache is None:
            return _built(self._model, self._config, self._report)
        self._here = hash_facts(
            _facts(self._model, self._config, self._refits)
        )  # now, since the GPU is the current one
        found = self._cache.take(self._here)
        if found is None:
            tell, waited = Reporter("build", self._report), list[str]()

            def waiting() -> None:
                waited[:] = ["waiting for another process"]
                tell(waited[0], 0, 1)

            self._held.enter_context(self._cache.building(self._here, waiting))
            for phase in waited:
                tell(phase, 1, 1)
            found = self._cache.take(self._here)
        if found is None:
            return _built(self._model, self._config, self._report)
        self._held.close()
        self._found = found
        return _adopted(self._model, found)

    @property
    def key(self) -> str:
        """What the engine is kept under; "" before this was called, and without a cache."""
        return self._here

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return ("the engine was built before and comes from the cache",) if self._found is not None else ()

    def keep(self, engine: EngineArtifact) -> None:
        """Keep the engine that was found right, with the kernels that TensorRT-RTX compiled meanwhile.

        Kernels for single shapes are nothing for it: who takes it may not want them.

        One that was found stays as it is, unless it has no kernels, or those of a driver that is not here any more, or
        its ONNX is another in what TensorRT does not look at.
        """
        if self._cache is None:
            return
        old = self._found
        same = old is not None and old.hardware.driver == engine.hardware.driver and old.has_model_of(engine)
        if same and old is not None and (old.read_runtime_cache() or not engine.read_runtime_cache()):
            return
        self._cache.store(self._here, engine)

    def forget(self) -> None:
        """What was found is wrong."""
        if self._cache is not None and self._found is not None:
            self._cache.remove(self._here)

    def close(self) -> None:
        """Let others build it."""
        self._held.close()


@contextmanager
def obtaining(
    source: OnnxArtifact | str | Path,
    profiles: Profiles = None,
    precision: str | None = None,
    *,
    config: BuildConfig = _DEFAULTS,
    cache: Cache = None,
    progress: Progress = None,
    refits: bool = False,
) -> Generator[Wanted]:
    """As `build`, for a caller who looks at the engine before it is kept.

    With `refits` a refittable engine from the cache may hold other weights than the source.

    Who wants the same engine meanwhile waits. If the body fails, a found engine is forgotten, unless what failed is
    the user's input or installation.
    """
    store = resolve_cache(cache)
    with reporting(progress) as report:
        wanted = Wanted(_fitting(resolve(source, profiles, precision), config), config, store, report, refits)
        try:
            yield wanted
        except (InputError, InstallationError):
            raise
        except Exception:
            wanted.forget()
            raise
        finally:
            wanted.close()


def _fitting(model: Source, config: BuildConfig) -> Source:
    """The model with its weight program if the engine is to be refittable, without it if not.

    Raises:
        InputError: there is none.
    """
    if not config.refittable:
        return replace(model, artifact=model.artifact.without_weights())
    if WEIGHTS not in model.artifact.files:
        raise InputError(
            "BuildConfig.refittable",
            got="True for an ONNX model that does not tell how its weights follow from a module's",
            allowed="what export(..., refittable=True) gave",
            fix="deploy the module with this config, or export it so",
        )
    return model


def _built(model: Source, config: BuildConfig, report: Report | None) -> EngineArtifact:
    owner = scratch_folder()
    request = PlanRequest(
        onnx_path=str(model.artifact.onnx_path),
        plan_path=str(owner.path / "model.plan"),
        signature=model.signature,
        profiles=model.profiles or (Profile({}),),
        precision=model.precision,
        flavour=config.flavour,
        workspace_bytes=config.workspace_bytes,
        gpu_index=current_gpu_index(),
        log_level=logging.getLogger("torch2engine.tensorrt").getEffectiveLevel(),
        progress=report is not None,
        refittable=config.refittable,
    )
    with _LOCK:
        facts = compile_in_child(request, Reporter("build", report))
    capability = facts.compute_capability
    hardware = Hardware(
        flavour=facts.flavour,
        flavour_version=facts.flavour_version,
        gpu=facts.gpu,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        driver=facts.driver,
    )
    return _artifact(model, owner, hardware)


def _adopted(model: Source, found: EngineArtifact) -> EngineArtifact:
    """A found engine beside this model's own ONNX, whose modules and source lines may be others."""
    owner, here = scratch_folder(), driver()
    if here != found.hardware.driver:
        found = found.with_runtime_cache(b"")  # they would pass for this driver's
    # What the plan holds is told by the weight program that came with it.
    own = replace(model, artifact=model.artifact.without_weights())
    found.without_onnx().link_into(owner.path)
    return _artifact(own, owner, replace(found.hardware, driver=here))


def driver() -> str | None:
    """The driver of the current GPU; None without one."""
    gpu = _gpu()
    return None if gpu is None else gpu.driver


def _gpu() -> Gpu | None:
    gpus, index = list_gpus(), current_gpu_index() or 0
    return gpus[index] if index < len(gpus) else None


def _facts(model: Source, config: BuildConfig, refits: bool = False) -> dict[str, Any]:
    """Everything that decides what TensorRT makes.

    The driver is not in it: a plan runs under every driver, and compiled kernels that another one made are not taken.
    """
    return {
        **circumstances(config),
        "onnx": fingerprint(model.artifact, refits),
        "signature": encode_non_finite(model.signature.to_json()),
        "profiles": [profile.to_json() for profile in model.profiles],
        "precision": model.precision,
    }


def circumstances(config: BuildConfig) -> dict[str, Any]:
    """What decides, beside the model, what TensorRT makes; the current GPU is part of it.

    Raises:
        InstallationError: no usable TensorRT.
    """
    rt, gpu = find_tensorrt(config.flavour), _gpu()
    return {
        "torch2engine": __version__,
        "tf32": tf32_override(),
        "config": {**asdict(config), "flavour": [rt.name, rt.version]},
        "gpu": None if gpu is None else [gpu.name, list(gpu.compute_capability)],
    }


def _artifact(model: Source, owner: ScratchFolder, hardware: Hardware) -> EngineArtifact:
    return EngineArtifact.from_onnx(
        model.artifact,
        owner.path,
        hardware=hardware,
        signature=model.signature,
        profiles=model.profiles,
        precision=float32_arithmetic(hardware.flavour, model.precision),
        versions={hardware.flavour: hardware.flavour_version},
        owner=owner,
    )
