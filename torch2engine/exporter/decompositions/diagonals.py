"""Diagonals of matrices.

Enters: the arguments of one operator. Leaves: its result, from positions in the flattened matrix. Separate because
torch.onnx writes EyeLike, which TensorRT has for static shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import larger, smaller

__all__ = ["DIAGONALS", "diagonal"]


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Take the elements (i, i + offset) of the matrices in two dimensions; they become the last dimension."""
    rows = x.shape[dim1]
    columns = x.shape[dim2]
    flat = x.movedim((dim1, dim2), (-2, -1)).flatten(-2)
    return flat.index_select(-1, _positions(rows, columns, offset, x.device))


def _positions(rows: int, columns: int, offset: int, device: torch.device) -> Tensor:
    """Where the diagonal lies in a flattened matrix."""
    first_row = max(-offset, 0)
    first_column = max(offset, 0)
    count = larger(smaller(rows - first_row, columns - first_column), 0)
    first = first_row * columns + first_column
    return torch.arange(count, device=device) * (columns + 1) + first


def trace(x: Tensor) -> Tensor:
    """Sum up the main diagonal."""
    return diagonal(x).sum()


def diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Put values onto a diagonal of a copy."""
    moved = x.movedim((dim1, dim2), (-2, -1))
    rows = torch.arange(moved.shape[-2], device=x.device).unsqueeze(-1)
    columns = torch.arange(moved.shape[-1], device=x.device)
    on_diagonal = columns - rows == offset
    # The index of each element on the diagonal is its row, minus the rows that the diagonal does not reach.
    place = (rows - max(-offset, 0)).clamp(min=0)
    place = torch.minimum(place, torch.full_like(place, source.shape[-1] - 1)).squeeze(-1)
    values = source.index_select(-1, place).unsqueeze(-1)
    return torch.where(on_diagonal, values, moved).movedim((-2, -1), (dim1, dim2))


def _diagonal_of_last(x: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """`linalg_diagonal`, whose matrices are in the last dimensions."""
    return diagonal(x, offset, dim1, dim2)


DIAGONALS: Mapping[str, Callable[..., Any]] = {
    "diagonal": diagonal,
    "diagonal_copy": diagonal,
    "linalg_diagonal": _diagonal_of_last,
    "trace": trace,
    "diagonal_scatter": diagonal_scatter,
}
