"""The complementary error function and the normal distribution, right in their tails.

Enters: the argument of one operator. Leaves: its result. Separate because torch.onnx writes 1 - erf(x), which is 0
above 4 and has no correct digit above 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.logarithms import as_floating, log1p

__all__ = ["ERROR_FUNCTION"]

# erfc(x) = t exp(-x^2 + P(t)) with t = 1 / (1 + x / 2), for x >= 0; relative error below 1.2e-7.
# Source: Press et al., Numerical Recipes in C, second edition, section 6.2.
_COEFFICIENTS = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)


def _tail(x: Tensor) -> tuple[Tensor, Tensor]:
    """t and P(t) at |x|."""
    t = 1.0 / (1.0 + 0.5 * x.abs())
    exponent = torch.full_like(t, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        exponent = exponent * t + coefficient
    return t, exponent


def erfc(x: Tensor) -> Tensor:
    """Compute 1 - erf(x)."""
    x = as_floating(x)
    t, exponent = _tail(x)
    tail = t * torch.exp(exponent - x * x)
    return torch.where(x < 0.5, 1.0 - torch.erf(x), tail)


def erfcx(x: Tensor) -> Tensor:
    """Compute exp(x^2) erfc(x)."""
    x = as_floating(x)
    t, exponent = _tail(x)
    tail = t * torch.exp(exponent)
    return torch.where(x < 0.0, 2.0 * torch.exp(x * x) - tail, tail)


def ndtr(x: Tensor) -> Tensor:
    """Compute the normal distribution's share below x."""
    return 0.5 * erfc(as_floating(x) * -math.sqrt(0.5))


def log_ndtr(x: Tensor) -> Tensor:
    """Compute the logarithm of the normal distribution's share below x."""
    x = as_floating(x)
    scaled = x * math.sqrt(0.5)
    low = torch.log(0.5 * erfcx(-scaled)) - scaled * scaled
    return torch.where(x < 1.0, low, log1p(-0.5 * erfc(scaled)))


ERROR_FUNCTION: Mapping[str, Callable[..., Any]] = {
    "erfc": erfc,
    "special_erfc": erfc,
    "special_erfcx": erfcx,
    "special_ndtr": ndtr,
    "special_log_ndtr": log_ndtr,
}
