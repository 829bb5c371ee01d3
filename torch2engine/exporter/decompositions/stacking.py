"""Stacking of tensors as rows, columns or layers.

Enters: a list of tensors. Leaves: one tensor, by a concatenation. Separate because torch.onnx writes loops over
sequences for these, which TensorRT lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["STACKING"]


def at_least_1d(x: Tensor) -> Tensor:
    """Give a number one dimension."""
    return x.reshape(1) if x.dim() == 0 else x


def at_least_2d(x: Tensor) -> Tensor:
    """Add leading dimensions, up to two in all."""
    return x if x.dim() > 1 else at_least_1d(x).unsqueeze(0)


def at_least_3d(x: Tensor) -> Tensor:
    """Make a row of numbers, or a matrix, one layer."""
    return x if x.dim() > 2 else at_least_2d(x).unsqueeze(-1)


def _of_each(function: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    return lambda tensors: [function(x) for x in tensors]


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate columns, or rows of numbers."""
    rows = [at_least_1d(x) for x in tensors]
    return torch.cat(rows, 0 if rows[0].dim() == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate rows."""
    return torch.cat([at_least_2d(x) for x in tensors], 0)


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate layers."""
    return torch.cat([at_least_3d(x) for x in tensors], 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate columns; a row of numbers is one column."""
    return torch.cat([x if x.dim() > 1 else x.reshape(-1, 1) for x in tensors], 1)


STACKING: Mapping[str, Callable[..., Any]] = {
    "atleast_1d": at_least_1d,
    "atleast_2d": at_least_2d,
    "atleast_3d": at_least_3d,
    "atleast_1d.Sequence": _of_each(at_least_1d),
    "atleast_2d.Sequence": _of_each(at_least_2d),
    "atleast_3d.Sequence": _of_each(at_least_3d),
    "hstack": hstack,
    "vstack": vstack,
    "dstack": dstack,
    "column_stack": column_stack,
}
