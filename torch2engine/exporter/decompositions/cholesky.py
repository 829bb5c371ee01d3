"""Cholesky's factor of small matrices, and what is computed by it.

Enters: the arguments of one operator. Leaves: its result, for small matrices of a fixed size. Separate because the
factor of a matrix that is not positive definite has rules of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.linear_algebra import is_small, solve_triangular

__all__ = ["CHOLESKY"]


@dataclass(frozen=True)
class _Factored:
    """The results of LAPACK's `potrf`.

    Args:
        factor: lower triangular. Columns from the first failure on are the matrix's own; that one's diagonal is what
            should have been positive.
        failure: int32, the number of the first column that fails, from 1; 0 for a positive definite matrix.
    """

    factor: Tensor
    failure: Tensor


def _factorize(matrix: Tensor) -> _Factored:
    """Factorise the lower triangle, column by column."""
    size = matrix.shape[-1]
    rows = torch.arange(size, device=matrix.device)
    rest = matrix
    failure = torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    columns: list[Tensor] = []
    for column in range(size):
        pivot = rest[..., column, column]
        had_failed = failure > 0
        fails = ~(pivot > 0)  # NaN fails too
        failure = torch.where(fails & ~had_failed, column + 1, failure)
        values = rest[..., column] / torch.sqrt(torch.where(fails, 1.0, pivot)).unsqueeze(-1)
        given = matrix[..., column]
        failing = torch.where(rows == column, torch.where(had_failed.unsqueeze(-1), given, pivot.unsqueeze(-1)), given)
        values = torch.where((failure > 0).unsqueeze(-1), failing, values)
        values = torch.where(rows >= column, values, 0.0)
        columns.append(values)
        rest = rest - values.unsqueeze(-1) * values.unsqueeze(-2)
    return _Factored(torch.stack(columns, -1), failure)


def _cholesky_ex(matrix: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """`linalg_cholesky_ex`: the factor, and the number of the first column that fails."""
    if not is_small(matrix):
        return NotImplemented
    factored = _factorize(matrix.mT if upper else matrix)
    return factored.factor.mT if upper else factored.factor, factored.failure


def _cholesky(matrix: Tensor, upper: bool = False) -> Tensor:
    """`cholesky`: the factor; NaN where PyTorch refuses."""
    results = _cholesky_ex(matrix, upper=upper)
    if results is NotImplemented:
        return NotImplemented
    return torch.where((results[1] > 0).unsqueeze(-1).unsqueeze(-1), torch.nan, results[0])


def _linalg_cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """`linalg_cholesky`, whose option has a name."""
    return _cholesky(matrix, upper)


def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    """`cholesky_solve`: of the matrix whose factor this is."""
    lower = factor.mT if upper else factor
    half = solve_triangular(lower, right, upper=False)
    return NotImplemented if half is NotImplemented else solve_triangular(lower.mT, half, upper=True)


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    """`cholesky_inverse`: of the matrix whose factor this is."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return _cholesky_solve(identity.expand(factor.shape), factor, upper)


CHOLESKY: Mapping[str, Callable[..., Any]] = {
    "linalg_cholesky_ex": _cholesky_ex,
    "linalg_cholesky": _linalg_cholesky,
    "cholesky": _cholesky,
    "cholesky_solve": _cholesky_solve,
    "cholesky_inverse": _cholesky_inverse,
}
