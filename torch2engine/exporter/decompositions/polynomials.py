"""Polynomials and Chebyshev series of a tensor.

Enters: coefficients and a tensor. Leaves: the sum. Separate because several functions are approximated by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["chebyshev", "polynomial"]


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Sum up a polynomial, the coefficient of the highest power first."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def chebyshev(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Sum up a Chebyshev series in x / 2, the highest degree first; its last coefficient is halved."""
    current = torch.full_like(x, coefficients[0])  # Clenshaw's recurrence
    before = torch.zeros_like(x)
    last = before
    for coefficient in coefficients[1:]:
        last = before
        before = current
        current = x * before - last + coefficient
    return 0.5 * (current - last)
