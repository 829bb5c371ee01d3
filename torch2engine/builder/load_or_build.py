"""One engine: it is loaded from the cache, or built, and stored once its caller accepts it.

Enters: a model in ONNX, a BuildConfig, a cache. Leaves: a `PendingEngine`, whose artifact is in a scratch folder.
Separate because a build takes minutes and much memory. Only one build runs at a time, and processes that need the same
engine wait for one another.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, hash_facts
from torch2engine.artifact.manifest_fields import Hardware, encode_non_finite
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import ScratchFolder, scratch_folder
from torch2engine.builder.child_process import BuilderProcess, compile_in_child
from torch2engine.builder.onnx_fingerprint import engine_fingerprint
from torch2engine.builder.plan import PlanRequest
from torch2engine.builder.source import BuildSource, Profiles, make_build_source
from torch2engine.core.config import DECIDES_NOTHING, BuildConfig
from torch2engine.core.errors import InputError, Torch2EngineError, may_blame_engine
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.core.progress import Progress, ProgressCallback, Reporter, reporting
from torch2engine.core.spec import Profile
from torch2engine.core.version import __version__
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import Gpu, current_gpu_index, list_gpus

__all__ = [
    "EarlyBuilder",
    "PendingEngine",
    "build_environment",
    "current_driver",
    "early_builder",
    "engine_facts",
    "load_or_build",
]

# Builders that run side by side disturb each other's timings and double the memory needed.
_ONE_BUILD_AT_A_TIME = ForkSafeLock()


@dataclass
class EarlyBuilder:
    """What happens before and beside a build.

    Args:
        process: a builder's process that was started before; None for none.
        check_during_build: called while the builder's process works; None for nothing.
    """

    process: BuilderProcess | None = None
    check_during_build: Callable[[], object] | None = None


class PendingEngine:
    """An engine that was loaded from the cache or built. The caller stores it after accepting it.

    Use it in a `with`. While the body runs, other processes that need the same new engine wait for it. If the body
    fails, an engine that came from the cache is removed from it. It stays if the cause is the user's input,
    installation or wish to stop, or if memory is full.

    Args:
        artifact: the engine.
        cache: where it is stored; None for nowhere.
        engine_key: its key there; "" without a cache.
        cached_engine: what the cache has under this key; None for an engine that was built now.
        cleanup: runs when the body ends.
    """

    def __init__(
        self,
        artifact: EngineArtifact,
        cache: EngineCache | None = None,
        engine_key: str = "",
        cached_engine: EngineArtifact | None = None,
        cleanup: ExitStack | None = None,
    ) -> None:
        self.artifact = artifact
        self.engine_key = engine_key
        self._cache = cache
        self._cached_engine = cached_engine
        self._cleanup = cleanup or ExitStack()

    def __enter__(self) -> PendingEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether the engine comes from the cache, as a sentence for a report."""
        return () if self._cached_engine is None else ("the engine was built before and comes from the cache",)

    def store(self, engine: EngineArtifact) -> None:
        """Store the engine that its caller accepted, with the kernels that TensorRT-RTX has compiled meanwhile.

        An engine that came from the cache is stored again in two cases only. Either its ONNX file differs in parts
        that TensorRT does not read, or its kernels are missing or belong to another driver.
        """
        if self._cache is None:
            return
        if not self._is_stored_as(engine):
            self._cache.store(self.engine_key, engine)

    def _is_stored_as(self, engine: EngineArtifact) -> bool:
        """Whether the cache has the same model, with kernels for the same driver where there are kernels."""
        cached = self._cached_engine
        if cached is None or cached.hardware.driver != engine.hardware.driver or not cached.has_model_of(engine):
            return False
        return bool(cached.read_runtime_cache()) or not engine.read_runtime_cache()


def load_or_build(
    source: OnnxArtifact | str | Path,
    precision: str | None = None,
    config: BuildConfig = BuildConfig(),
    cache: EngineCache | None = None,
    progress: Progress = None,
    early: EarlyBuilder | None = None,
    *,
    profiles: Profiles = None,
    exact_weights: bool = False,
) -> PendingEngine:
    """Load an engine from the cache, or build it; first wait for another process that builds the same one.

    The GPU that is current counts. Of an engine that is not in the cache, the cache's lock is held until the `with` of
    the result ends.

    Args:
        source, precision, config, progress, profiles: as for `build`.
        cache: where the engine may be; None for nowhere.
        early: from `early_builder`. Its `check_during_build` is called once in this thread: while the builder's process
            works, or for an engine from the cache before that engine is returned. An error of this check ends the
            build, and leaves the engine in the cache.
        exact_weights: take a refittable engine from the cache only if it has these weights.

    Raises:
        as `build`, and what `check_during_build` raises.
    """
    early = early or EarlyBuilder()
    build_source = _with_matching_weights(make_build_source(source, profiles, precision), config)
    with reporting(progress) as on_progress, ExitStack() as cleanup:
        if cache is None:
            return PendingEngine(_build_engine(build_source, config, on_progress, early))
        key = hash_facts(
            engine_facts(build_source, config, accepts_other_weights=config.refittable and not exact_weights)
        )
        cached_engine = cache.take(key)
        if cached_engine is None:
            waiting = _Waiting(Reporter("build", on_progress))
            cleanup.enter_context(cache.building(key, waiting.report_step))
            waiting.report_end()
            cached_engine = cache.take(key)
        if cached_engine is None:
            artifact = _build_engine(build_source, config, on_progress, early)
        else:
            cleanup.close()  # no lock: other processes may load it too
            if early.check_during_build is not None:
                early.check_during_build()
            cleanup.enter_context(_removed_if_wrong(cache, key))
            artifact = _with_model(cached_engine, build_source)
        return PendingEngine(artifact, cache, key, cached_engine, cleanup.pop_all())


@contextmanager
def early_builder(precision: str | None, config: BuildConfig) -> Generator[EarlyBuilder]:
    """Start a builder's process before its model is known, so that it loads its libraries meanwhile.

    Args:
        precision, config: as for `load_or_build`.

    Returns:
        for the body, which the process lives as long as. Without a process where none can be started: the build itself
        then says why.
    """
    with ExitStack() as stack:
        process: BuilderProcess | None = None
        with suppress(Torch2EngineError, OSError):
            process = stack.enter_context(BuilderProcess(precision or DEFAULT_PRECISION, config.flavour, is_early=True))
        yield EarlyBuilder(process)


@contextmanager
def _removed_if_wrong(cache: EngineCache, key: str) -> Generator[None]:
    """Remove an engine from the cache if the body fails and the engine may be the cause."""
    try:
        yield
    except Exception as error:
        if may_blame_engine(error):
            cache.remove(key)
        raise


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


def _build_engine(
    source: BuildSource,
    config: BuildConfig,
    on_progress: ProgressCallback | None,
    early: EarlyBuilder,
) -> EngineArtifact:
    owner = scratch_folder()
    request = PlanRequest(
        onnx_path=str(source.artifact.checked_onnx_path),
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
        compute_capabilities=config.compute_capabilities,
        hardware_compatibility=config.hardware_compatibility,
        attention=config.attention_form,
    )
    with _ONE_BUILD_AT_A_TIME:
        reporter = Reporter("build", on_progress)
        facts = compile_in_child(
            request, reporter, config.time_limit_s, early=early.process, meanwhile=early.check_during_build
        )
    capability = facts.compute_capability
    hardware = Hardware(
        flavour=facts.flavour,
        flavour_version=facts.flavour_version,
        gpu=facts.gpu,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        driver=facts.driver,
        compute_capabilities=config.compute_capabilities,
        hardware_compatibility=config.hardware_compatibility,
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
        "builder": _digest_of_code(Path(__file__).parent),
        "config": {**_deciding_options(config), "flavour": [rt.name, rt.version]},
        "gpu": None if current_gpu is None else [current_gpu.name, list(current_gpu.compute_capability)],
    }


@functools.cache
def _digest_of_code(folder: Path) -> str:
    """Hash the code of a folder and of its subfolders. The builder rewrites graphs: other code makes other engines."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
