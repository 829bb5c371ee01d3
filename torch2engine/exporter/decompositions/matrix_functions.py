"""Powers and the exponential of matrices, by products.

Enters: the arguments of one operator. Leaves: its result. Separate because only a negative power needs an inverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.linear_algebra import inverse

__all__ = ["MATRIX_FUNCTIONS"]

_DEGREE = 12  # of the series, which float32 can't tell from the exponential below a norm of 1
_STEP = 3
_MOST_SQUARES = 24  # beyond a norm of 2 ** 24 float32 does not know an angle any more


def matrix_power(matrix: Tensor, n: int) -> Tensor:
    """Multiply a matrix n times, by squares; a negative n needs an inverse."""
    if n < 0:
        results = inverse(matrix)
        return NotImplemented if results is NotImplemented else matrix_power(results[0], -n)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    result: Tensor | None = None
    square = matrix
    while n:
        if n % 2:
            result = square if result is None else result @ square
        n //= 2
        square = square @ square if n else square
    return identity.clone() if result is None else result.clone() if result is matrix else result


def matrix_exp(matrix: Tensor) -> Tensor:
    """Compute the exponential: a series of the matrix over a power of two, squared as often."""
    if matrix.is_complex():
        return NotImplemented
    norm = matrix.abs().sum(-2).amax(-1)[..., None, None]
    counts = torch.arange(_MOST_SQUARES, device=matrix.device, dtype=torch.float32)
    limits = torch.pow(2.0, counts)
    squares = (norm.unsqueeze(-1) > limits).to(matrix.dtype).sum(-1)
    result = _series(matrix * torch.pow(0.5, squares).to(matrix.dtype))
    for count in range(_MOST_SQUARES):
        result = torch.where(squares > count, result @ result, result)
    return result


def _series(matrix: Tensor) -> Tensor:
    """The exponential's power series up to `_DEGREE`, in steps of `_STEP` powers."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    square = matrix @ matrix
    powers = (identity, matrix, square)
    cube = square @ matrix
    total = identity * (1.0 / math.factorial(_DEGREE))
    for first in range(_DEGREE - _STEP, -1, -_STEP):
        part = sum(power * (1.0 / math.factorial(first + number)) for number, power in enumerate(powers))
        total = total @ cube + part
    return total


MATRIX_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "linalg_matrix_power": matrix_power,
    "matrix_power": matrix_power,
    "matrix_exp": matrix_exp,
    "linalg_matrix_exp": matrix_exp,
}
