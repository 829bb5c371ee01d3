"""Where `module.to(...)`, `.cuda()`, `.half()` and their like would put a deployed module.

Enters: the function that nn.Module hands to `_apply`. Leaves: a device, or a typed error. Separate because PyTorch
tells such a move only by what a function does to tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.errors import DeviceError, InputError

__all__ = ["device_after"]

_PROBED = (torch.float16, torch.float64)  # no cast leaves both as they are


def device_after(
    subject: str, move: Callable[[torch.Tensor], torch.Tensor], here: torch.device, device_type: str
) -> torch.device:
    """Find the device to which a function moves tensors.

    Args:
        subject: the class name of the deployed module, for errors.
        move: tried on empty tensors.
        here: where the module runs.
        device_type: the type of the devices that its backend can use.

    Raises:
        InputError: the function casts.
        DeviceError: it moves to a device of another type, or it fails.
    """
    # They are real, since PyTorch refuses to move a meta tensor.
    probes = [torch.empty(0, dtype=dtype, device=here) for dtype in _PROBED]
    try:
        moved = [move(probe) for probe in probes]
    except Exception as error:  # a torch without CUDA asserts, one without a GPU raises RuntimeError
        raise _refusal(subject, f"a move that PyTorch refuses ({error})", device_type) from error
    if any(after.dtype != before.dtype for before, after in zip(probes, moved, strict=True)):
        raise InputError(
            subject,
            got=f"a cast to {dtype_name(moved[0].dtype)}",
            allowed="the dtypes that the engine was built with",
            fix="cast the model and deploy it again",
        )
    target = moved[0].device
    if target != here and target.type != device_type:
        raise _refusal(subject, f"a move to {target}", device_type)
    return target


def _refusal(subject: str, got: str, device_type: str) -> DeviceError:
    return DeviceError(
        subject,
        got=got,
        allowed="the CPU" if device_type == "cpu" else f"a {device_type.upper()} device",
        fix="deploy again with the other runtime for that device",
    )
