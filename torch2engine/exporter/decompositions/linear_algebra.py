"""Inverses, solutions and determinants of small matrices, by elimination with one step for each row.

Enters: the arguments of one operator. Leaves: its result, for matrices of a fixed size up to 16. Separate because
ONNX has a determinant alone, and TensorRT not even that. Larger matrices have no ONNX form and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import is_fixed

__all__ = ["LARGEST", "LINEAR_ALGEBRA", "inverse", "is_small", "no_failures", "solve_triangular"]

LARGEST = 16  # about ten nodes for each column


@dataclass(frozen=True)
class _Eliminated:
    """The results of Gauss and Jordan's elimination with partial pivoting.

    Args:
        solution: the inverse times the right side, [..., n, k].
        pivots: [..., n]; their product is the determinant but for its sign.
        swaps: [...], the number of exchanged rows.
    """

    solution: Tensor
    pivots: Tensor
    swaps: Tensor


def is_small(matrix: Tensor) -> bool:
    """Tell whether a matrix is real and small enough to be written out."""
    size = matrix.shape[-1]
    return is_fixed(size) and 0 < size <= LARGEST and not matrix.is_complex()


def _eliminate(matrix: Tensor, right: Tensor) -> _Eliminated:
    """Solve matrix @ solution = right, column by column."""
    size = matrix.shape[-1]
    rows = torch.arange(size, device=matrix.device)
    batch: Sequence[int] = cast("Any", torch.broadcast_shapes)(matrix.shape[:-2], right.shape[:-2])
    work = torch.cat((matrix.expand(*batch, *matrix.shape[-2:]), right.expand(*batch, *right.shape[-2:])), -1)
    swaps = torch.zeros_like(work[..., 0, 0])
    pivots: list[Tensor] = []
    for column in range(size):
        heights = torch.where(rows >= column, work[..., column].abs(), -1.0)
        pivot_row = heights.argmax(-1, keepdim=True)
        swaps = swaps + (pivot_row.squeeze(-1) != column).to(swaps.dtype)
        # Row `column` and the pivot's row change places.
        order = torch.where(rows == column, pivot_row, torch.where(rows == pivot_row, column, rows))
        work = work.gather(-2, order.unsqueeze(-1).expand(work.shape))
        pivot = work[..., column : column + 1, column : column + 1]
        pivots.append(pivot.flatten(-2))
        pivot_values = work[..., column : column + 1, :] / pivot
        factors = work[..., column : column + 1]
        is_pivot_row = (rows == column).unsqueeze(-1)
        work = torch.where(is_pivot_row, pivot_values, work - factors * pivot_values)
    return _Eliminated(work[..., size:], torch.cat(pivots, -1), swaps)


def inverse(matrix: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """Invert by `linalg_inv_ex`: the inverse, and 0 for each matrix."""
    if not is_small(matrix):
        return NotImplemented
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    solution = _eliminate(matrix, identity).solution
    return solution, no_failures(matrix)


def no_failures(matrix: Tensor) -> Tensor:
    """0 for each matrix."""
    return torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)


def _solve(
    matrix: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_linalg_solve_ex`: the solution; its other results are of the factorisation."""
    if not is_small(matrix):
        return NotImplemented
    is_vector = right.dim() == 1 or (matrix.dim() - 1 == right.dim() and right.shape == matrix.shape[:-1])
    columns = right.unsqueeze(-1) if is_vector else right
    if left:
        solution = _eliminate(matrix, columns).solution
    else:
        solution = _eliminate(matrix.mT, columns.mT).solution.mT
    pivots = torch.zeros(matrix.shape[:-1], dtype=torch.int32, device=matrix.device)
    return solution.squeeze(-1) if is_vector else solution, matrix, pivots, no_failures(matrix)


def solve_triangular(
    matrix: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Solve `linalg_solve_triangular`'s equations, which read one triangle alone."""
    if not is_small(matrix):
        return NotImplemented
    triangle = matrix.triu() if upper else matrix.tril()
    if unitriangular:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        triangle = torch.where(identity == 1.0, identity, triangle)
    if left:
        return _eliminate(triangle, right).solution
    return _eliminate(triangle.mT, right.mT).solution.mT


def _determinant(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_linalg_det`: the determinant; its other results are of the factorisation."""
    if not is_small(matrix):
        return NotImplemented
    sign, pivots = _signed_pivots(matrix)
    return sign * pivots.prod(-1), matrix, torch.zeros(matrix.shape[:-1], dtype=torch.int32, device=matrix.device)


def _signed_pivots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The sign that the exchanged rows give, and the pivots; an empty column gives a pivot of 0."""
    eliminated = _eliminate(matrix, matrix[..., :0])
    is_odd = torch.remainder(eliminated.swaps, 2.0) == 1.0
    # Behind a pivot of 0 come NaNs, but the determinant is 0 then.
    singular = (eliminated.pivots == 0).any(-1, keepdim=True)
    pivots = torch.where(singular, 0.0, eliminated.pivots)
    return torch.where(is_odd, -1.0, 1.0).to(matrix.dtype), pivots


def _log_determinant(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_linalg_slogdet`: sign and logarithm of the determinant; its other results are of the factorisation."""
    if not is_small(matrix):
        return NotImplemented
    sign, pivots = _signed_pivots(matrix)
    below = (pivots < 0).to(matrix.dtype).sum(-1)
    sign = torch.where(torch.remainder(below, 2.0) == 1.0, -sign, sign)
    sign = torch.where((pivots == 0).any(-1), 0.0, sign)
    logarithm = torch.log(pivots.abs()).sum(-1)
    return sign, logarithm, matrix, torch.zeros(matrix.shape[:-1], dtype=torch.int32, device=matrix.device)


def _triangular_solve(
    right: Tensor, matrix: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    """`triangular_solve`: the solution, and the matrix."""
    triangle = matrix.mT if transpose else matrix
    solution = solve_triangular(triangle, right, upper=upper != transpose, unitriangular=unitriangular)
    return NotImplemented if solution is NotImplemented else (solution, matrix.clone())


def _tensor_inverse(x: Tensor, ind: int = 2) -> Tensor:
    """`linalg_tensorinv`: the inverse of the matrix whose rows are the first `ind` dimensions."""
    rows = x.shape[:ind]
    columns = x.shape[ind:]
    results = inverse(x.reshape(math.prod(rows), math.prod(columns)))
    return NotImplemented if results is NotImplemented else results[0].reshape(*columns, *rows)


def _first_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator that gives the first result alone."""

    def decomposition(*args: Any, **options: Any) -> Any:
        results = function(*args, **options)
        return NotImplemented if results is NotImplemented else results[0]

    return decomposition


def _sign_and_log_determinant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`linalg_slogdet`."""
    results = _log_determinant(matrix)
    return NotImplemented if results is NotImplemented else results[:2]


def _logdet(matrix: Tensor) -> Tensor:
    """`logdet`: NaN for a negative determinant."""
    results = _log_determinant(matrix)
    if results is NotImplemented:
        return NotImplemented
    return torch.where(results[0] < 0, torch.nan, results[1])


LINEAR_ALGEBRA: Mapping[str, Callable[..., Any]] = {
    "linalg_inv_ex": inverse,
    "linalg_inv": _first_of(inverse),
    "inverse": _first_of(inverse),
    "_linalg_solve_ex": _solve,
    "linalg_solve": _first_of(_solve),
    "linalg_solve_triangular": solve_triangular,
    "triangular_solve": _triangular_solve,
    "linalg_tensorinv": _tensor_inverse,
    "_linalg_det": _determinant,
    "linalg_det": _first_of(_determinant),
    "det": _first_of(_determinant),
    "_linalg_slogdet": _log_determinant,
    "linalg_slogdet": _sign_and_log_determinant,
    "slogdet": _sign_and_log_determinant,
    "logdet": _logdet,
}
