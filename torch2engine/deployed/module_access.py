"""Functions on a deployed module that the package's own steps need, beside its methods.

Enters: a deployed module. Leaves: its artifact or the name of its runtime, or a change of its weights and its memory.
Separate because these are no methods: users would find them among those of the nn.Module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.live_parameters import live_tensors
from torch2engine.core.config import Tolerances
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.weight_sync import NamedInputs

if TYPE_CHECKING:
    from torch2engine.deployed.trt.trt_module import TRTModule
    from torch2engine.trt.engine import Engine

__all__ = [
    "artifact_of",
    "attach_model",
    "current_artifact_of",
    "keep_capture",
    "live_engine_of",
    "prove_split_axes",
    "release_capture",
    "runtime_kind",
    "share_live_parameters",
]


def live_engine_of(module: TRTModule[Any]) -> Engine:
    """Give the engine that a module runs, made live if it is not yet."""
    return module._backend.bind().engine  # pyright: ignore[reportPrivateUsage]  # for steps, not for users


def attach_model(
    module: DeployedModule[Any],
    model: nn.Module,
    samples: NamedInputs,
    tolerance: Tolerances | None,
    onnx_is_current: bool = True,
) -> bool:
    """Make a model the source of a module's later refits, and give the module its weights now.

    Args:
        module: of an artifact that can be refitted.
        model: the one that was deployed; it is not kept alive.
        samples: inputs by the name of their case, to verify refits on; copied to the CPU.
        tolerance: when answers count as equal; None means the precision's.
        onnx_is_current: whether the artifact's ONNX was exported from this model just now. It was not for an engine
            from the cache, whose plan and ONNX are both of an earlier deploy.

    Returns:
        whether the module held other weights.

    Raises:
        RefitError: a weight of the engine does not follow from the model.
    """
    sync = module._weight_sync  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
    return sync.attach_model(module.infer, model, samples, tolerance, onnx_is_current)


def runtime_kind(module: DeployedModule[Any]) -> str:
    """Name the runtime whose rounding a module's answers have, in the words of `sensitivity_factor`."""
    return module._backend.runtime_kind  # pyright: ignore[reportPrivateUsage]  # for steps, not for users


def artifact_of(module: DeployedModule[Any]) -> Artifact:
    """Give the artifact that a module was made from."""
    return module._artifact  # pyright: ignore[reportPrivateUsage]  # for steps, not for users


def current_artifact_of(module: DeployedModule[Any]) -> Artifact:
    """Give the artifact of a module with everything that calls and refits have added, as `save` writes it.

    Raises:
        RefitError: its weights were found wrong.
    """
    with module._weight_sync.weights_locked():  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
        return module._current_artifact()  # pyright: ignore[reportPrivateUsage]  # for steps, not for users


def keep_capture(module: TRTModule[Any], capture_id: int, stream: int, wait: Callable[[], object]) -> None:
    """Count a module's calls in a capture as the package's own, which no refit is refused for.

    Args:
        module: called in the capture, or not.
        capture_id: of the capture, which has ended.
        stream: handle of the capturing stream, on which no further call comes.
        wait: waits for the work of the CUDA graph. It must not hold the graph.
    """
    session = module._backend.session  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
    if session is not None:
        session.keep_capture(capture_id, stream, wait)


def release_capture(module: TRTModule[Any], capture_id: int) -> None:
    """Wait for the work of a CUDA graph that is launched no more, and let go of the module's contexts in it."""
    session = module._backend.session  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
    if session is not None:
        session.release_capture(capture_id)


def share_live_parameters(module: DeployedModule[Any], model: nn.Module) -> None:
    """Give a module's live parameters the values of a model's, and their memory where that is on the same device.

    Args:
        module: made for this model.
        model: the one that was deployed; it is not kept alive, but memory that it shares is.
    """
    live = module._live  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
    if live is not None:
        device = module.device or torch.device("cpu")
        live.share(live_tensors(model, module.signature.live_parameters), device)


def prove_split_axes(
    module: DeployedModule[Any], calls: Sequence[Sequence[torch.Tensor]], tolerance: Tolerances | None = None
) -> tuple[str, ...]:
    """Prove which axes may be split now, instead of in the first call that is too large.

    Args:
        module: if its out_of_range is not "split", there is nothing to prove.
        calls: flat inputs as for `infer`, inside the profiles, on any device.
        tolerance: when the answers in chunks count as equal to the whole; by default that of the precision.

    Returns:
        a sentence on every axis; nothing under another policy.

    Raises:
        InputError: no axis can be split or proved.
        ParityError: entries along the only axes that could be split influence each other.
    """
    if module.runtime_config.out_of_range != "split":
        return ()
    own_calls = [[leaf.to(module.device) for leaf in call] for call in calls]
    return module._prove_split_axes(own_calls, tolerance)  # pyright: ignore[reportPrivateUsage]  # for steps, not for users
