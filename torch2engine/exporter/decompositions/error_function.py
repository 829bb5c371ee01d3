"""The complementary error function and the normal distribution, exact in their tails, and the inverses of both.

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
from torch2engine.exporter.decompositions.polynomials import polynomial

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

# The normal distribution's quantile as quotients of polynomials: in the middle, and for z = sqrt(-2 log(tail)) below
# and above 8. Source: Moshier, Cephes Mathematical Library, ndtri.
_MIDDLE_ABOVE = (
    -59.96335010141079,
    98.00107541859997,
    -56.67628574690703,
    13.931260938727968,
    -1.2391658386738125,
)
_MIDDLE_BELOW = (
    1.0,
    1.9544885833814176,
    4.676279128988815,
    86.36024213908905,
    -225.46268785411937,
    200.26021238006066,
    -82.03722561683334,
    15.90562251262117,
    -1.1833162112133,
)
_TAIL_ABOVE = (
    4.0554489230596245,
    31.525109459989388,
    57.16281922464213,
    44.08050738932008,
    14.684956192885803,
    2.1866330685079025,
    -0.1402560791713545,
    -0.03504246268278482,
    -0.0008574567851546854,
)
_TAIL_BELOW = (
    1.0,
    15.779988325646675,
    45.39076351288792,
    41.3172038254672,
    15.04253856929075,
    2.504649462083094,
    -0.14218292285478779,
    -0.03808064076915783,
    -0.0009332594808954574,
)
_FAR_TAIL_ABOVE = (
    3.2377489177694603,
    6.915228890689842,
    3.9388102529247444,
    1.3330346081580755,
    0.20148538954917908,
    0.012371663481782003,
    0.00030158155350823543,
    2.6580697468673755e-06,
    6.239745391849833e-09,
)
_FAR_TAIL_BELOW = (
    1.0,
    6.02427039364742,
    3.6798356385616087,
    1.3770209948908132,
    0.21623699359449663,
    0.013420400608854318,
    0.00032801446468212774,
    2.8924786474538068e-06,
    6.790194080099813e-09,
)
_TAIL = 0.1353352832366127  # exp(-2)
_FAR_TAIL_FROM = 8.0


def _tail(x: Tensor) -> tuple[Tensor, Tensor]:
    """t and P(t) at |x|."""
    t = 1.0 / (1.0 + 0.5 * x.abs())
    return t, polynomial(t, _COEFFICIENTS)


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


def erfinv(x: Tensor) -> Tensor:
    """Compute the inverse of erf; infinite at -1 and 1, NaN beyond."""
    x = as_floating(x)
    return _quantile(0.5 * x, 0.5 * (1.0 - x.abs())) * math.sqrt(0.5)


def ndtri(x: Tensor) -> Tensor:
    """Compute the value below which the normal distribution has a share of x."""
    x = as_floating(x)
    return _quantile(x - 0.5, torch.minimum(x, 1.0 - x))


def _quantile(offset: Tensor, tail: Tensor) -> Tensor:
    """The quantile of a share, as its offset from a half and its distance from the nearer of 0 and 1."""
    square = offset * offset
    ratio = polynomial(square, _MIDDLE_ABOVE) / polynomial(square, _MIDDLE_BELOW)
    middle = (offset + offset * square * ratio) * math.sqrt(2.0 * math.pi)
    size = torch.sqrt(-2.0 * torch.log(tail))
    z = 1.0 / size
    near = polynomial(z, _TAIL_ABOVE) / polynomial(z, _TAIL_BELOW)
    far = polynomial(z, _FAR_TAIL_ABOVE) / polynomial(z, _FAR_TAIL_BELOW)
    outside = size - torch.log(size) * z - z * torch.where(size < _FAR_TAIL_FROM, near, far)
    outside = torch.where(tail == 0, torch.inf, outside)
    return torch.where(tail > _TAIL, middle, torch.where(offset < 0, -outside, outside))


ERROR_FUNCTION: Mapping[str, Callable[..., Any]] = {
    "erfc": erfc,
    "special_erfc": erfc,
    "special_erfcx": erfcx,
    "special_ndtr": ndtr,
    "special_log_ndtr": log_ndtr,
    "erfinv": erfinv,
    "special_erfinv": erfinv,
    "special_ndtri": ndtri,
}
