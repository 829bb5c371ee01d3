"""Activations of tensors whose sizes are computed.

Enters: the arguments of one operator. Leaves: its result; NotImplemented where every size is an input's own. Separate
because a fault of TensorRT-RTX's builder decides here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import SymInt, Tensor

__all__ = ["ACTIVATIONS"]


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    """`elu`: TensorRT-RTX 1.6 can't infer the shape of its own ELU behind a recurrent layer and computed sizes."""
    if not any(map(_is_computed, x.shape)):
        return NotImplemented
    return torch.where(x > 0, scale * x, alpha * scale * torch.expm1(input_scale * x))


def _is_computed(size: Any) -> bool:
    return isinstance(size, SymInt) and not cast("Any", size).node.expr.is_Symbol


ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "elu": _elu,
}
