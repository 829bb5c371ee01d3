"""Triangles of matrices as comparisons, for engines whose weights can be replaced.

Enters: the arguments of `tril` or `triu`. Leaves: the same result by comparisons of places. Separate because only such
engines need them: TensorRT's importer makes weights of its own for ONNX's Trilu, which no refit can give (RTX 1.6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["TRIANGLES"]


def _lower(x: Tensor, diagonal: int = 0) -> Tensor:
    """`tril`: x [..., rows, columns] up to a diagonal, and zeros above it."""
    return _kept(x, _distance(x) <= diagonal)


def _upper(x: Tensor, diagonal: int = 0) -> Tensor:
    """`triu`: x [..., rows, columns] from a diagonal on, and zeros below it."""
    return _kept(x, _distance(x) >= diagonal)


def _distance(x: Tensor) -> Tensor:
    """[rows, columns]: how far each place is to the right of the main diagonal."""
    rows = torch.arange(x.shape[-2], device=x.device)
    columns = torch.arange(x.shape[-1], device=x.device)
    return columns - rows.unsqueeze(-1)


def _kept(x: Tensor, places: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        return torch.logical_and(x, places)
    return torch.where(places, x, torch.zeros((), dtype=x.dtype, device=x.device))


TRIANGLES: Mapping[str, Callable[..., Any]] = {"tril": _lower, "triu": _upper}
