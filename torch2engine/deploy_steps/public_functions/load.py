"""A saved folder → a deployed module with its report: the public step `load`.

Enters: the folder that `save` wrote. Leaves: a module of the backend that runs what is in it. Separate because it
composes the artifact, the table of backends and the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import Cache
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import ONNX, REPORT
from torch2engine.core.config import RUNTIMES, OnMismatch, Runtime, RuntimeConfig, require_choice
from torch2engine.core.errors import ArtifactError, InputError, InstallationError, Torch2EngineError
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.core.progress import Progress
from torch2engine.core.user_warning import warn_user
from torch2engine.core.wording import quote
from torch2engine.deployed.backend_table import module_of_artifact
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import list_gpus
from torch2engine.trt.local_hardware import choose_engine

if TYPE_CHECKING:
    from torch2engine.deployed.onnxruntime.ort_module import ORTModule
    from torch2engine.deployed.trt.trt_module import TRTModule

__all__ = ["load", "saved_report"]


@overload
def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
    *,
    runtime: Literal["tensorrt"],
    on_mismatch: OnMismatch = "error",
    cache: Cache = None,
    progress: Progress = None,
) -> TRTModule: ...
@overload
def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
    *,
    runtime: Literal["onnxruntime"],
    on_mismatch: OnMismatch = "error",
    cache: Cache = None,
    progress: Progress = None,
) -> ORTModule: ...
@overload
def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
    runtime: Runtime | None = None,
    *,
    on_mismatch: OnMismatch = "error",
    cache: Cache = None,
    progress: Progress = None,
) -> TRTModule | ORTModule: ...
def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
    runtime: Runtime | None = None,
    *,
    on_mismatch: OnMismatch = "error",
    cache: Cache = None,
    progress: Progress = None,
) -> Any:
    """Load a saved artifact: an engine as `TRTModule`, an exported model as `ORTModule`, one in parts as `PartsModule`.

    From a bundle, the plan for the present GPU is taken. `save` of the module then writes that engine alone.

    Args:
        path: the folder that `save` wrote.
        device: for an engine a CUDA device, by default PyTorch's current one; an exported model runs on the CPU.
        runtime_config: how the module answers; an exported model takes `out_of_range` alone and refuses the rest.
        reference: the PyTorch module that answers under out_of_range="eager".
        runtime: what runs the artifact. None takes the runtime that the artifact was saved for. "onnxruntime" runs the
            model.onnx that lies beside an engine, on the CPU. "auto" runs the model.onnx only where the engine can't
            run, with one warning.
        on_mismatch: what happens to an engine that does not run here: of another TensorRT, or for other GPUs. "error":
            an ArtifactError. "rebuild": an engine is built anew from the model.onnx beside the saved one, with one
            warning. The new engine is not compared with the model, which load() does not have;
            `torch2engine.testing.assert_parity` compares them. Saving the module saves the new engine.
        cache, progress: of the build under "rebuild", as for `torch2engine.build`. With a cache, a machine builds the
            engine once.

    Returns:
        the module. Its `report` is that of the deploy, if a deployed module was saved.

    Raises:
        ArtifactError: corrupt, foreign, made for other hardware or another version, or an engine without model.onnx.
        InstallationError: no GPU, or no TensorRT of its flavour.
        DeviceError: `device` is a GPU for an exported model, or the CPU for an engine.
        InputError: a runtime that can't run the artifact, options that the runtime does not have, or a reference that
            is missing or has no use.
        BuildError, UnsupportedOperatorError: the engine can't be built here.

    >>> loaded = t2e.load(module.save("model.t2e"))
    >>> torch.equal(loaded(sample), module(sample))
    True
    """
    require_choice("runtime", runtime, (None, *RUNTIMES))
    require_choice("on_mismatch", on_mismatch, get_args(OnMismatch))
    artifact = load_artifact(path, to_run=runtime != "onnxruntime")
    if runtime == "onnxruntime" and not isinstance(artifact, OnnxArtifact):
        artifact = artifact.exported()
    if runtime == "tensorrt":
        _require_engine(artifact, path)
    rebuilds = on_mismatch == "rebuild"
    if isinstance(artifact, BundleArtifact):
        try:
            artifact = _engine_of_bundle(artifact, device)
        except ArtifactError as error:
            if not rebuilds:
                raise
            other = artifact.engine(next(iter(artifact.plans)))
            artifact = _rebuilt(other, path, f"got {error.got}", device=device, cache=cache, progress=progress)
    if rebuilds and isinstance(artifact, EngineArtifact) and not _has_flavour(artifact):
        why = f"{artifact.hardware.flavour} is not installed"
        artifact = _rebuilt(artifact, path, why, device=device, cache=cache, progress=progress)
    try:
        module = module_of_artifact(artifact, path, device, runtime_config, reference)
    except ArtifactError as error:
        if not isinstance(artifact, EngineArtifact) or ONNX not in artifact.files:
            raise
        if not rebuilds:
            fix = f"load it with on_mismatch='rebuild'; or {error.fix}"
            raise ArtifactError(
                error.subject, got=error.got, allowed=error.allowed, fix=fix, path=error.path
            ) from error
        artifact = _rebuilt(artifact, path, f"got {error.got}", device=device, cache=cache, progress=progress)
        module = module_of_artifact(artifact, path, device, runtime_config, reference)
    except InstallationError as error:
        if ONNX not in artifact.files and not isinstance(artifact, PartsArtifact):
            raise
        if runtime == "auto" and isinstance(artifact, (EngineArtifact, PartsArtifact)):
            warn_user(f"running the {ONNX} of '{path}' with ONNX Runtime on the CPU: {error.subject}: {error.got}")
            artifact = artifact.exported()
            module = module_of_artifact(artifact, path, None, runtime_config.on_cpu(), reference)
        else:
            fix = f"{error.fix}; or load it with runtime='onnxruntime', which runs its {ONNX} on the CPU"
            raise InstallationError(error.subject, got=error.got, allowed=error.allowed, fix=fix) from error
    module.report = saved_report(artifact)
    return module


def _engine_of_bundle(bundle: BundleArtifact, device: torch.device | str | None) -> EngineArtifact:
    """The engine for the device.

    Raises:
        ArtifactError: no plan runs there.
    """
    index = None if device is None else torch.device(device).index
    if index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return choose_engine(bundle, index)


def _has_flavour(artifact: EngineArtifact) -> bool:
    """Whether the engine's TensorRT is installed; true where no GPU could run any engine."""
    try:
        find_tensorrt(artifact.hardware.flavour)
    except InstallationError:
        return not list_gpus()
    return True


def _rebuilt(
    artifact: EngineArtifact,
    path: str | Path,
    why: str,
    *,
    device: torch.device | str | None,
    cache: Cache,
    progress: Progress,
) -> EngineArtifact:
    warn_user(f"building the engine of '{path}' anew for this machine: {why}")
    # It loads onnx, which an engine that fits does without.
    from torch2engine.deploy_steps.public_functions.rebuild import rebuild

    return rebuild(artifact, device, cache, progress)


def _require_engine(artifact: OnnxArtifact | EngineArtifact | PartsArtifact | BundleArtifact, path: str | Path) -> None:
    """Refuse to run with TensorRT what holds no engine of it.

    Raises:
        InputError: saying how to get one.
    """
    if isinstance(artifact, (EngineArtifact, BundleArtifact)):
        return
    if isinstance(artifact, PartsArtifact) and artifact.hardware is not None:
        return
    in_parts = isinstance(artifact, PartsArtifact)
    raise InputError(
        "runtime",
        got=f"'tensorrt' for {'a model in parts of ONNX Runtime' if in_parts else 'an exported model'}",
        allowed="'onnxruntime', 'auto' or None, since there is no engine in it",
        fix="deploy the model with runtime='tensorrt'"
        if in_parts
        else f"build one with torch2engine.build(torch2engine.OnnxArtifact.load({str(path)!r}))",
    )


def saved_report(artifact: Artifact) -> DeployReport:
    """The report of the deploy whose module was saved; one that compares nothing where there is none.

    Raises:
        ArtifactError: the report is not one that this version wrote.
    """
    data = artifact.read_report()
    if data is None:
        return DeployReport.of_nothing(artifact.precision)
    try:
        lowering = None if data["lowering"] is None else PrecisionOutcome.from_json(data["lowering"])
        computed = None if data["computed"] is None else PrecisionReport.from_json(data["computed"])
        return DeployReport.from_json(data, lowering, computed)
    except (KeyError, TypeError, ValueError, AttributeError, Torch2EngineError) as error:
        raise ArtifactError(
            f"{artifact!r}",
            got=f"a {REPORT} that can't be read ({quote(error)})",
            allowed="the report that save() wrote",
            fix="save the deployed module again",
        ) from error
