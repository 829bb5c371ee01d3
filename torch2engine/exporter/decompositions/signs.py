"""Signs, NaN and signed zeros, as PyTorch treats them.

Enters: the arguments of one operator. Leaves: its result. Separate because torch.onnx's forms lose a NaN (atan2 gives
0 for it) or the sign of a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.logarithms import as_floating

__all__ = ["SIGNS"]


def sign(x: Tensor) -> Tensor:
    """Compute -1, 0 or 1; 0 for NaN."""
    if not x.is_floating_point():
        return NotImplemented
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def signbit(x: Tensor) -> Tensor:
    """Tell whether x is negative or -0."""
    if not x.is_floating_point():
        return x < 0
    return (x < 0) | (1.0 / x < 0)


def copysign(x: Tensor, signed: Tensor) -> Tensor:
    """Give x the other value's sign."""
    size = as_floating(x).abs()
    return torch.where(signbit(signed), -size, size)


def heaviside(x: Tensor, values: Tensor) -> Tensor:
    """Compute 0 below zero, `values` at zero, 1 above; 0 for NaN."""
    return torch.where(x == 0, values, (x > 0).to(x.dtype))


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Compute the angle of (x, y), in -pi .. pi."""
    y = as_floating(y)
    x = as_floating(x)
    quotient = torch.where((y == 0) & (x == 0), y, y / x)
    both_infinite = torch.isinf(y) & torch.isinf(x)
    slope = torch.where(both_infinite, sign(y) * sign(x), quotient)
    half_turn = torch.where(signbit(y), -math.pi, math.pi)
    angle = torch.atan(slope)
    return torch.where(signbit(x), angle + half_turn, angle)


def hypot(a: Tensor, b: Tensor) -> Tensor:
    """Compute sqrt(a^2 + b^2) without an overflow between; infinite beside any infinity."""
    large = torch.maximum(a.abs(), b.abs())
    small = torch.minimum(a.abs(), b.abs())
    ratio = torch.where(large == 0, large, small / large)
    infinite = torch.isinf(a) | torch.isinf(b)
    return torch.where(infinite, math.inf, large * torch.sqrt(1.0 + ratio * ratio))


def fmax(a: Tensor, b: Tensor) -> Tensor:
    """Compute the larger one; a NaN loses against a number."""
    return torch.where(a != a, b, torch.where(b != b, a, torch.maximum(a, b)))


def fmin(a: Tensor, b: Tensor) -> Tensor:
    """Compute the smaller one; a NaN loses against a number."""
    return torch.where(a != a, b, torch.where(b != b, a, torch.minimum(a, b)))


SIGNS: Mapping[str, Callable[..., Any]] = {
    "sign": sign,
    "sgn": sign,
    "signbit": signbit,
    "copysign.Tensor": copysign,
    "heaviside": heaviside,
    "atan2": atan2,
    "hypot": hypot,
    "fmax": fmax,
    "fmin": fmin,
}
