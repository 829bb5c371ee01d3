"""The user's module, reached below torch's wrappers, and refused if no later stage can take it.

Enters: what a user calls a model. Leaves: the innermost nn.Module. Separate because every entry that takes a model
reaches it in this way before it does anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.errors import InputError

__all__ = ["unwrap"]

_WRAPPERS: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: Any) -> nn.Module:
    """Reach the user's module below torch.compile and (Distributed)DataParallel.

    Raises:
        InputError: not an nn.Module, deployed already, or one that can't be traced: it is or holds a ScriptModule, or
            its parameters are lazy or were made in inference mode.
    """
    inner = model
    while hasattr(inner, "_orig_mod") or type(inner) in _WRAPPERS:
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    got = f"a {type(inner).__name__}"
    if not isinstance(inner, nn.Module):
        fix = "wrap a function in a module whose forward calls it"
        raise InputError("model", got=got, allowed="a torch.nn.Module", fix=fix)
    for name, module in cast("Iterable[tuple[str, nn.Module]]", inner.named_modules()):
        if isinstance(module, torch.jit.ScriptModule):
            fix = "pass the module as it was before torch.jit.script or torch.jit.trace"
            raise InputError(
                "model",
                got=f"its submodule '{name}' is a {type(module).__name__}" if name else got,
                allowed="the Python module that it was made from",
                fix=fix,
            )
    for name, parameter in [*inner.named_parameters(), *inner.named_buffers()]:
        if isinstance(parameter, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            got = f"its lazy parameter '{name}' has no shape yet"
            raise InputError("model", got=got, fix="call the model once first")
        if parameter.is_inference() and parameter.requires_grad:
            got = f"its parameter '{name}' was made in inference mode and requires grad, which torch.export can't take"
            raise InputError("model", got=got, fix="make or load the model outside torch.inference_mode()")
    if getattr(inner, "_t2e_deployed", False):
        raise InputError("model", got=got, fix="it is deployed already; pass the PyTorch module")
    return inner
