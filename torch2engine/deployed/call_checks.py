"""Refuses the tensors of a call that a backend can't answer, before anything runs.

Enters: flat inputs of a call, as the caller passed them. Leaves: nothing, or a typed error that says what to pass.
Separate because these checks are the same for every backend, and need nothing of the module but its signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.autograd import forward_ad

from torch2engine.capture.torch_types import dtype_name, layout_name
from torch2engine.core.errors import DeviceError, InputError
from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.core.wording import kind_of
from torch2engine.deployed.backend import Backend
from torch2engine.deployed.torch_state import is_simulated

__all__ = ["check_devices", "check_tensors"]


def check_tensors(signature: Signature, leaves: Sequence[torch.Tensor]) -> None:
    """Refuse inputs that are not dense tensors of the signature's dtypes, without gradients; sizes are not checked.

    Args:
        signature: of the call.
        leaves: one value for each input; a caller may have passed anything.

    Raises:
        InputError, DtypeError: naming the first input that is refused.
    """
    if len(leaves) != len(signature.inputs):
        raise InputError(
            "inputs",
            got=f"{len(leaves)}",
            allowed=f"{len(signature.inputs)}: {', '.join(spec.name for spec in signature.inputs)}",
            fix="pass these",
        )
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        if not isinstance(cast("object", leaf), torch.Tensor):
            raise _refusal(spec, kind_of(leaf), "a torch.Tensor", "pass torch.as_tensor(...) of it")
        signature.check_dtype(spec, dtype_name(leaf.dtype))
        if leaf.layout is not torch.strided or leaf.is_nested:
            layout = "nested" if leaf.is_nested else layout_name(leaf.layout)
            raise _refusal(spec, f"layout {layout}", "a dense tensor", "make it dense, e.g. with .to_dense()")
        has_tangent = forward_ad.unpack_dual(leaf).tangent is not None
        if (leaf.requires_grad and torch.is_grad_enabled()) or has_tangent:
            raise _refusal(
                spec,
                "a forward-mode tangent" if has_tangent else "a tensor that requires grad while grad is enabled",
                "a tensor without gradients, since an engine only infers",
                "call it under torch.no_grad(), or pass the tensor's .detach()",
            )


def check_devices(subject: str, backend: Backend, leaves: Sequence[torch.Tensor]) -> None:
    """Refuse tensors on another device than the backend's, and tensors without values.

    Args:
        subject: the class name of the deployed module, for an error about the whole call.
        backend: a backend without a device takes that of the first tensor.
        leaves: as `check_tensors` has accepted them.

    Raises:
        DeviceError, InputError: naming the first input that is refused.
    """
    device_type = backend.device_type
    expected = backend.device or (leaves[0].device if leaves else None)
    for spec, leaf in zip(backend.artifact.signature.inputs, leaves, strict=True):
        if leaf.device != expected or leaf.device.type != device_type:
            known = expected is not None and expected.type == device_type
            raise DeviceError(
                f"input '{spec.name}'",
                name=spec.name,
                got=f"device {leaf.device}",
                allowed=f"{expected if known else f'a {device_type.upper()} device'}, where the module runs",
                fix=f"move it with .to('{expected if known else device_type}')",
            )
        if not _has_values(leaf):
            raise _refusal(
                spec,
                "a stand-in without values",
                "a tensor with memory of its own",
                "call the module outside of vmap, tracing and FakeTensorMode",
            )
    if is_simulated():
        raise InputError(
            subject,
            got="a call under make_fx or FakeTensorMode",
            allowed="a call that computes, since a trace would keep this answer for every input",
            fix="trace the PyTorch module instead",
        )


def _has_values(leaf: torch.Tensor) -> bool:
    # Stand-ins have no memory: those of vmap have no storage, and fake ones have it elsewhere. An emptied storage has
    # no address.
    try:
        return leaf.untyped_storage().device == leaf.device and (leaf.numel() == 0 or leaf.data_ptr() != 0)
    except RuntimeError:
        return False


def _refusal(spec: TensorSpec, got: str, allowed: str, fix: str) -> InputError:
    return InputError(f"input '{spec.name}'", name=spec.name, got=got, allowed=allowed, fix=fix)
