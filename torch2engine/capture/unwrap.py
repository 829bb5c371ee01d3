"""The user's module, reached below torch's wrappers, and refused if no later stage can take it.

Enters: what a user calls a model. Leaves: the innermost nn.Module. Separate because every entry that takes a model
reaches it in this way before it does anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.errors import InputError
from torch2engine.core.foreign_files import cure_for_path
from torch2engine.core.wording import kind_of

__all__ = ["require_values", "unwrap"]

_WRAPPERS: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: Any) -> nn.Module:
    """Reach the user's module below torch.compile and (Distributed)DataParallel.

    Raises:
        InputError: no nn.Module, a module that is deployed already, or one that can't be traced. The last is or holds a
            ScriptModule or packed quantised weights, or its parameters are lazy or were made in inference mode.
    """
    inner = model
    while hasattr(inner, "_orig_mod") or type(inner) in _WRAPPERS:
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    if not isinstance(inner, nn.Module):
        raise InputError("model", got=kind_of(inner), allowed="a torch.nn.Module", fix=_cure_for(inner))
    _check_no_script_module(inner)
    _check_no_packed_weights(inner)
    _check_tensors(inner)
    if getattr(inner, "_t2e_deployed", False):
        raise InputError("model", got=kind_of(inner), allowed="a PyTorch module", fix="pass what it was deployed from")
    answering = (inner.forward, getattr(inner.forward, "__self__", None))
    if any(getattr(one, "_t2e_deployed", False) for one in answering):
        got = f"{kind_of(inner)} whose calls an engine answers"
        fix = "call restore() of its DeployedSubmodules first; for new weights call their refit()"
        raise InputError("model", got=got, allowed="a module that answers by itself", fix=fix)
    return inner


def _cure_for(value: object) -> str:
    """How to get a module from the value that was given."""
    if isinstance(value, type):
        return f"make one first, e.g. {value.__name__}(...)"
    if isinstance(value, Mapping):
        return "load this state into a module with module.load_state_dict(...), and pass the module"
    if isinstance(value, (str, Path)):
        return cure_for_path(Path(value)) or "pass the module itself"
    if isinstance(value, torch.export.ExportedProgram):
        return "pass the module that it was exported from"
    if callable(value):
        return "wrap a function in a module whose forward calls it"
    return "pass the module whose forward is to be deployed"


def _check_no_script_module(model: nn.Module) -> None:
    """Refuse what torch.jit made, since torch.export traces Python."""
    for name, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "model",
                got=kind_of(module) + (f" as its submodule '{name}'" if name else ""),
                allowed="the Python module that it was made from",
                fix="pass the module as it was before torch.jit.script or torch.jit.trace",
            )


def _check_no_packed_weights(model: nn.Module) -> None:
    """Refuse PyTorch's own quantised modules, whose weights are packed for the CPU's kernels."""
    for name, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules()):
        packed = getattr(module, "_packed_params", None)
        if isinstance(getattr(packed, "_packed_params", packed), torch.ScriptObject):
            raise InputError(
                "model",
                got=f"{kind_of(module)} of torch.ao as its submodule '{name}', with weights packed for the CPU",
                allowed="a model in floating point",
                fix="deploy the model as it was before quantize_dynamic or convert, with precision='int8' if you like",
            )


def _check_tensors(model: nn.Module) -> None:
    """Refuse parameters and buffers without values, and those that torch.export can't take."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            got = f"a lazy parameter '{name}' without a shape"
            raise InputError("model", got=got, allowed="parameters with values", fix="call the model once first")
        if tensor.is_inference() and tensor.requires_grad:
            got = f"a parameter '{name}' that was made in inference mode and requires grad"
            fix = "make or load the model outside torch.inference_mode()"
            raise InputError("model", got=got, allowed="parameters that torch.export can take", fix=fix)


def require_values(model: nn.Module) -> None:
    """Refuse a model that can't compute, since it is on the meta device.

    Raises:
        InputError: naming the first such parameter or buffer.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise InputError(
                "model",
                got=f"'{name}' on the meta device, which holds no values",
                allowed="parameters with values",
                fix="make the model on a real device, or call model.to_empty(device=...) and load a state_dict",
            )
