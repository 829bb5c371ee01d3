"""A new engine and the parity cases → the engine with the kernels that these cases need.

Enters: a module whose engine was built just now. Leaves: the same, with kernels for every case, where it takes
TensorRT-RTX long to compile them. Separate because it decides whether other processes are worth their start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.builder.kernel_processes import Call, compile_beside
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.progress import Progress
from torch2engine.core.select_profile import select_profile
from torch2engine.deployed.module_access import artifact_of, live_engine_of
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.precision.engine_precision import count_layers

__all__ = ["compile_kernels_for"]

_MANY_LAYERS = 40  # of an engine whose kernels take seconds; a process takes two until it compiles


def compile_kernels_for(module: TRTModule[Any], cases: Sequence[ParityCase], progress: Progress) -> None:
    """Compile the kernels of all cases in processes side by side, if that takes less time than at the first calls.

    A "tf32" engine has it always, since only such processes compile in TF32.

    Args:
        module: on its GPU.
        cases: the parity cases.
        progress: as for `build`.

    Raises:
        BuildError: progress returned False.
    """
    artifact = cast("EngineArtifact", artifact_of(module))
    is_rtx = artifact.hardware.flavour == "tensorrt_rtx"
    has_kernels = artifact.runtime_cache_path is not None
    if not is_rtx or has_kernels or module.runtime_config.kernel_specialization != "none" or module.device is None:
        return
    if count_layers(module) < _MANY_LAYERS and not PRECISION_TYPES[artifact.precision].uses_tf32:
        return
    calls = [_call_of(case, artifact) for case in cases]
    with torch.cuda.device(module.device):
        torch.cuda.empty_cache()  # the other processes need memory
        compile_beside(live_engine_of(module), artifact, module.device.index, calls, progress)


def _call_of(case: ParityCase, artifact: EngineArtifact) -> Call:
    """The profile that a call with a case's inputs takes, and the inputs' shapes."""
    shapes = [list(leaf.shape) for leaf in case.inputs]
    signature = artifact.signature
    profiles = artifact.profiles
    return (select_profile(signature, profiles, signature.resolve(shapes)) if profiles else 0, shapes)
