"""The logarithm of the gamma function, and its derivatives.

Enters: the arguments of one operator. Leaves: its result, to the precision of float32. Separate because ONNX has none
of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.logarithms import as_floating, log1p
from torch2engine.exporter.decompositions.polynomials import polynomial

__all__ = ["GAMMA_FUNCTIONS", "digamma", "lgamma", "polygamma"]

_EULER = 0.5772156649015329
# (zeta(k) - 1) for k = 2, 3, ...: lgamma(2 + t) = (1 - gamma) t + sum over k of (-t)^k (zeta(k) - 1) / k.
_ZETA_LESS_1 = (
    0.6449340668482264,
    0.20205690315959428,
    0.08232323371113819,
    0.03692775514336993,
    0.01734306198444914,
    0.008349277381922827,
    0.004077356197944339,
    0.00200839282608221,
    0.0009945751278180853,
    0.0004941886041194646,
    0.0002460865533080483,
    0.0001227133475784891,
)
_LGAMMA_SERIES = (
    *(zeta / power * (-1) ** power for power, zeta in reversed([*enumerate(_ZETA_LESS_1, 2)])),
    1.0 - _EULER,
)
_STIRLING_FROM = 8.0
_STIRLING = (-1 / 1680, 1 / 1260, -1 / 360, 1 / 12)
_DIGAMMA_FROM = 8.0
_DIGAMMA_SERIES = (1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)
_ZETA_TERMS = 10
# B_2k / (2k)! of Euler and Maclaurin's sum
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


def lgamma(x: Tensor) -> Tensor:
    """Compute log(|gamma(x)|); infinite at 0, -1, -2, ..., and exact to float32 near its zeros 1 and 2."""
    x = as_floating(x)
    reflected = x < 0.5
    positive = torch.where(reflected, 1.0 - x, x)
    above = _lgamma_above_half(positive)
    distance = (x - torch.round(x)).abs()
    sine = torch.sin(math.pi * distance)
    below = math.log(math.pi) - torch.log(sine) - above
    below = torch.where(distance == 0, torch.inf, below)
    tiny = x.abs() < 1e-6  # there 1 - x is 1
    below = torch.where(tiny, -torch.log(x.abs()), below)
    result = torch.where(reflected, below, above)
    return torch.where(torch.isinf(x), torch.inf, result)


def _lgamma_above_half(x: Tensor) -> Tensor:
    """lgamma for x >= 0.5."""
    low = x < 1.5
    t = torch.where(low, x - 1.0, x - 2.0)
    product = torch.ones_like(x)
    for _ in range(int(_STIRLING_FROM) - 2):  # down to 1.5 .. 2.5
        large = t > 0.5
        product = torch.where(large, product * (t + 1.0), product)
        t = torch.where(large, t - 1.0, t)
    t = t.clamp(-0.5, 1.0)  # what lies above is Stirling's
    near = t * polynomial(t, _LGAMMA_SERIES) + torch.log(product)
    near = torch.where(low, near - log1p(x - 1.0), near)
    inverse = 1.0 / x
    correction = inverse * polynomial(inverse * inverse, _STIRLING)
    far = (x - 0.5) * torch.log(x) - x + (0.5 * math.log(2.0 * math.pi)) + correction
    return torch.where(x < _STIRLING_FROM, near, far)


def digamma(x: Tensor) -> Tensor:
    """Compute the derivative of lgamma; NaN at -1, -2, ..., infinite at 0."""
    x = as_floating(x)
    negative = x < 0
    argument = torch.where(negative, 1.0 - x, x)
    total = torch.zeros_like(x)
    for _ in range(int(_DIGAMMA_FROM)):
        small = argument < _DIGAMMA_FROM
        total = torch.where(small, total - 1.0 / argument, total)
        argument = torch.where(small, argument + 1.0, argument)
    inverse = 1.0 / argument
    square = inverse * inverse
    result = total + torch.log(argument) - 0.5 * inverse - square * polynomial(square, _DIGAMMA_SERIES)
    part = math.pi * (x - torch.round(x))
    # At a half the tangent is infinite and its inverse 0.
    cotangent = torch.cos(part) / torch.sin(part)
    result = torch.where(negative, result - math.pi * cotangent, result)
    pole = negative & (x == torch.round(x))
    return torch.where(x == 0, -1.0 / x, torch.where(pole, torch.nan, result))


def polygamma(n: int, x: Tensor) -> Tensor:
    """Compute the n-th derivative of digamma, for a positive x; below zero for n = 1 alone, NaN for others."""
    if n == 0:
        return digamma(x)
    x = as_floating(x)
    factor = float(math.factorial(n)) * (-1.0) ** (n + 1)
    if n > 1:
        return factor * hurwitz_zeta(float(n + 1), x)
    negative = x < 0
    value = hurwitz_zeta(2.0, torch.where(negative, 1.0 - x, x))
    sine = torch.sin(math.pi * (x - torch.round(x))) / math.pi
    return torch.where(negative, 1.0 / (sine * sine) - value, value)


def hurwitz_zeta(s: float, x: Tensor) -> Tensor:
    """Sum up (x + k) ** -s over k = 0, 1, ..., for s > 1 and a positive x."""
    total = torch.zeros_like(x)
    for step in range(_ZETA_TERMS):
        total = total + torch.pow(x + float(step), -s)
    end = x + float(_ZETA_TERMS)
    power = torch.pow(end, -s)
    total = total + torch.pow(end, 1.0 - s) / (s - 1.0) + 0.5 * power
    rising = s
    term = power / end
    for number, bernoulli in enumerate(_BERNOULLI):
        total = total + bernoulli * rising * term
        rising *= (s + 2 * number + 1) * (s + 2 * number + 2)
        term = term / (end * end)
    return torch.where(x > 0, total, torch.where(x == 0, torch.inf, torch.nan))


GAMMA_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "lgamma": lgamma,
    "special_gammaln": lgamma,
    "digamma": digamma,
    "special_digamma": digamma,
    "special_psi": digamma,
    "polygamma": polygamma,
    "special_polygamma": polygamma,
}
