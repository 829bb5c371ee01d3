"""Operators of bools and bytes, by operators of the types that ONNX Runtime and TensorRT have them for.

Enters: the arguments of one operator. Leaves: its result in the type that PyTorch gives. Separate because only the type
of the elements decides here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["SMALL_TYPES"]

_SMALL = (torch.bool, torch.uint8)


def _where(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`where` of bools, by logic."""
    if one.dtype != torch.bool or other.dtype != torch.bool:
        return NotImplemented
    return (condition & one) | (~condition & other)


def _of_values_and_places(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that gives elements and their places."""

    def decomposition(x: Tensor, *args: Any, **options: Any) -> Any:
        if x.dtype not in _SMALL:
            return NotImplemented
        values, places = function(x.to(torch.int32), *args, **options)
        return values.to(x.dtype), places

    return decomposition


SMALL_TYPES: Mapping[str, Callable[..., Any]] = {
    "where.self": _where,
    "max.dim": _of_values_and_places(torch.max),
    "min.dim": _of_values_and_places(torch.min),
}
