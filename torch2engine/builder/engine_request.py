"""A request for one engine: it is loaded from the cache, or built, and stored once its caller accepts it.

Enters: a model in ONNX, a BuildConfig, a cache. Leaves: an `EngineArtifact` in a scratch folder. Separate because a
build takes minutes and much memory. Only one build runs at a time, and processes that request the same engine wait for
one another.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, hash_facts
from torch2engine.artifact.manifest_fields import Hardware, encode_non_finite
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import ScratchFolder, scratch_folder
from torch2engine.builder.child_process import compile_in_child
from torch2engine.builder.onnx_fingerprint import engine_fingerprint
from torch2engine.builder.plan import PlanRequest
from torch2engine.builder.source import BuildSource
from torch2engine.core.config import DECIDES_NOTHING, BuildConfig
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.progress import Progress, ProgressCallback, Reporter, reporting
from torch2engine.core.spec import Profile
from torch2engine.core.version import __version__
from torch2engine.trt.gpu import Gpu, current_gpu_index, list_gpus
from torch2engine.trt.library import find_tensorrt

__all__ = ["EngineRequest", "build_environment", "current_driver", "engine_facts", "request_engine"]

# Builders that run side by side disturb each other's timings and double the memory needed.
_ONE_BUILD_AT_A_TIME = ForkSafeLock()


class EngineRequest:
    """An engine that is loaded from the cache or built; its caller stores it, once it finds the engine right.

    Args:
        source: the model to build from.
        config: how TensorRT builds.
        cache: where the engine may be, and where it is stored; None for nowhere.
        on_progress: takes the build's progress; None if nobody does.
    """

    def __init__(
        self,
        source: BuildSource,
        config: BuildConfig,
        cache: EngineCache | None,
        on_progress: ProgressCallback | None,
    ) -> None:
        self._source = source
        self._config = config
        self._cache = cache
        self._on_progress = on_progress
        self._cache_key = ""
        self._build_lock = ExitStack()
        self._cached_engine: EngineArtifact | None = None

    def load_or_build(self, *, accepts_other_weights: bool = False) -> EngineArtifact:
        """Take the engine from the cache, or build it; first wait for another process that builds the same one.

        Args:
            accepts_other_weights: take a refittable engine from the cache whatever the values of its weights.
        """
        if self._cache is None:
            return _build_engine(self._source, self._config, self._on_progress)
        # The key is made here and not earlier, because the GPU that is current now is part of it.
        accepts_other_weights = accepts_other_weights and self._config.refittable
        self._cache_key = hash_facts(engine_facts(self._source, self._config, accepts_other_weights))
        self._cached_engine = self._cache.take(self._cache_key)
        if self._cached_engine is None:
            waiting = _Waiting(Reporter("build", self._on_progress))
            self._build_lock.enter_context(self._cache.building(self._cache_key, waiting.report_step))
            waiting.report_end()
            self._cached_engine = self._cache.take(self._cache_key)
        if self._cached_engine is None:
            return _build_engine(self._source, self._config, self._on_progress)
        self._build_lock.close()
        return _with_model(self._cached_engine, self._source)

    @property
    def cache_key(self) -> str:
        """The engine's key in the cache; "" before `load_or_build`, and without a cache."""
        return self._cache_key

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether the engine comes from the cache, as a sentence for a report."""
        return () if self._cached_engine is None else ("the engine was built before and comes from the cache",)

    def store(self, engine: EngineArtifact) -> None:
        """Store the engine that its caller accepted, with the kernels that TensorRT-RTX has compiled meanwhile.

        An engine from the cache stays there unchanged, with two exceptions. Its ONNX may differ in what TensorRT does
        not read, or its kernels may be missing or of another driver.
        """
        if self._cache is None:
            return
        cached = self._cached_engine
        if (
            cached is not None
            and cached.hardware.driver == engine.hardware.driver
            and cached.has_model_of(engine)
            and (cached.read_runtime_cache() or not engine.read_runtime_cache())
        ):
            return
        self._cache.store(self._cache_key, engine)

    def remove_from_cache(self) -> None:
        """Remove the engine from the cache, if it came from there: it is wrong."""
        if self._cache is not None and self._cached_engine is not None:
            self._cache.remove(self._cache_key)

    def close(self) -> None:
        """Let other processes build the engine."""
        self._build_lock.close()


class _Waiting:
    """Reports the time in which another process builds the same engine."""

    _PHASE = "waiting for another process"

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._has_waited = False

    def report_step(self) -> None:
        self._has_waited = True
        self._report(self._PHASE, 0, 1)

    def report_end(self) -> None:
        if self._has_waited:
            self._report(self._PHASE, 1, 1)


@contextmanager
def request_engine(
    source: BuildSource, config: BuildConfig, cache: EngineCache | None = None, progress: Progress = None
) -> Generator[EngineRequest]:
    """Request an engine for the body, which checks it and stores it.

    If the body fails, an engine that came from the cache is removed from it. It stays if the cause is the user's input
    or installation. An engine that is not in the cache is built under a lock: another process that requests the same
    one waits until the body ends.

    Args:
        source: the model to build from.
        config: how TensorRT builds.
        cache: where the engine may be, and where it is stored; None for nowhere.
        progress: as for `build`.
    """
    with reporting(progress) as on_progress:
        engine_request = EngineRequest(_with_matching_weights(source, config), config, cache, on_progress)
        try:
            yield engine_request
        except (InputError, InstallationError):
            raise
        except Exception:
            engine_request.remove_from_cache()
            raise
        finally:
            engine_request.close()


def _with_matching_weights(source: BuildSource, config: BuildConfig) -> BuildSource:
    """The model with its weight program if the engine is to be refittable, and without it if not.

    Raises:
        InputError: the engine is to be refittable, and the model has no weight program.
    """
    if not config.refittable:
        return replace(source, artifact=source.artifact.without_weights())
    if WEIGHTS not in source.artifact.files:
        raise InputError(
            "BuildConfig.refittable",
            got="True for an ONNX model that does not tell how its weights follow from a module's",
            allowed="what export(..., refittable=True) gave",
            fix="deploy the module with this config, or export it so",
        )
    return source


def _build_engine(source: BuildSource, config: BuildConfig, on_progress: ProgressCallback | None) -> EngineArtifact:
    owner = scratch_folder()
    request = PlanRequest(
        onnx_path=str(source.artifact.verified_onnx_path),
        plan_path=str(owner.path / "model.plan"),
        signature=source.signature,
        profiles=source.profiles or (Profile({}),),
        precision=source.precision,
        flavour=config.flavour,
        workspace_bytes=config.workspace_bytes,
        gpu_index=current_gpu_index(),
        log_level=logging.getLogger("torch2engine.tensorrt").getEffectiveLevel(),
        progress=on_progress is not None,
        refittable=config.refittable,
    )
    with _ONE_BUILD_AT_A_TIME:
        facts = compile_in_child(request, Reporter("build", on_progress), config.time_limit_s)
    capability = facts.compute_capability
    hardware = Hardware(
        flavour=facts.flavour,
        flavour_version=facts.flavour_version,
        gpu=facts.gpu,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        driver=facts.driver,
    )
    return _engine_artifact(source, owner, hardware)


def _with_model(cached: EngineArtifact, source: BuildSource) -> EngineArtifact:
    """A cached engine with this model's ONNX, whose module names and source lines may differ from the cached one's."""
    owner = scratch_folder()
    driver = current_driver()
    if driver != cached.hardware.driver:
        cached = cached.with_runtime_cache(b"")  # its kernels would be taken for kernels of this driver
    # The weight program that came with the plan stays: it says which weights the plan holds.
    without_weights = replace(source, artifact=source.artifact.without_weights())
    cached.without_onnx().link_into(owner.path)
    return _engine_artifact(without_weights, owner, replace(cached.hardware, driver=driver))


def _engine_artifact(source: BuildSource, owner: ScratchFolder, hardware: Hardware) -> EngineArtifact:
    return EngineArtifact.from_onnx(
        source.artifact,
        owner.path,
        hardware=hardware,
        signature=source.signature,
        profiles=source.profiles,
        precision=source.precision,
        versions={hardware.flavour: hardware.flavour_version},
        owner=owner,
    )


def engine_facts(source: BuildSource, config: BuildConfig, accepts_other_weights: bool = False) -> dict[str, Any]:
    """Everything that decides which engine TensorRT makes, as JSON values for the cache's key.

    The driver is no part of it: a plan runs under every driver, and kernels of another driver are left out.
    """
    return {
        **build_environment(config),
        "onnx": engine_fingerprint(source.artifact, accepts_other_weights=accepts_other_weights),
        "signature": encode_non_finite(source.signature.to_json()),
        "profiles": [profile.to_json() for profile in source.profiles],
        "precision": source.precision,
    }


def build_environment(config: BuildConfig) -> dict[str, Any]:
    """Everything but the model that decides which engine TensorRT makes; the current GPU is part of it.

    Raises:
        InstallationError: no usable TensorRT.
    """
    rt = find_tensorrt(config.flavour)
    current_gpu = _current_gpu()
    return {
        "torch2engine": __version__,
        "config": {**_deciding_options(config), "flavour": [rt.name, rt.version]},
        "gpu": None if current_gpu is None else [current_gpu.name, list(current_gpu.compute_capability)],
    }


def _deciding_options(config: BuildConfig) -> dict[str, Any]:
    """The options that decide which engine TensorRT makes, and not only whether it makes one."""
    return {
        field.name: getattr(config, field.name) for field in fields(config) if DECIDES_NOTHING not in field.metadata
    }


def current_driver() -> str | None:
    """The driver's version of the current GPU; None without one."""
    current_gpu = _current_gpu()
    return None if current_gpu is None else current_gpu.driver


def _current_gpu() -> Gpu | None:
    gpus = list_gpus()
    index = current_gpu_index() or 0
    return gpus[index] if index < len(gpus) else None
