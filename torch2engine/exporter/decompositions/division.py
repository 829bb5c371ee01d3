"""Division that rounds, remainders, and functions of integers.

Enters: the arguments of one operator. Leaves: its result. Separate because torch.onnx divides integers as float32, so
that 2147483647 // 4 is one too large. It divides floats by rounding a quotient that was rounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor

__all__ = ["DIVISION"]


def _is_integer(value: Tensor | complex) -> bool:
    """Tell whether a tensor or number is an integer, as type promotion sees it."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() and not value.is_complex()
    return isinstance(value, int)


def _divides_by_size(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and _is_integer(a) and isinstance(b, SymInt)


def _as_tensor(size: Any, like: Tensor) -> Tensor:
    return torch.scalar_tensor(size, dtype=torch.int64, device=like.device)


def divide(a: Tensor, b: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    """Divide, and round the quotient down ("floor") or towards zero ("trunc")."""
    if rounding_mode is None:
        return torch.true_divide(a, b)
    if _divides_by_size(a, b):
        return torch.div(a, _as_tensor(b, a), rounding_mode=rounding_mode)
    if rounding_mode == "floor":
        return torch.floor_divide(a, b) if _is_integer(a) and _is_integer(b) else floor_divide(a, b)
    if not (_is_integer(a) and _is_integer(b)):
        return torch.trunc(torch.true_divide(a, b))
    # The quotient of sizes is rounded down, which is towards zero.
    size = torch.floor_divide(a.abs(), abs(b))
    return torch.where((a < 0) == (b < 0), size, -size)


def floor_divide(a: Tensor, b: Tensor | float) -> Tensor:
    """Divide and round down, from the exact remainder as PyTorch does: 1.0 // 0.1 is 9."""
    if _divides_by_size(a, b):
        return torch.floor_divide(a, _as_tensor(b, a))
    if _is_integer(a) and _is_integer(b):
        return NotImplemented
    remains = torch.fmod(a, b)
    quotient = (a - remains) / b
    has_other_sign = (remains != 0) & ((remains < 0) != _is_negative(b, a))
    quotient = torch.where(has_other_sign, quotient - 1.0, quotient)
    whole = torch.floor(quotient)
    whole = torch.where(quotient - whole > 0.5, whole + 1.0, whole)
    divided = torch.true_divide(a, b)
    whole = torch.where(quotient == 0, divided * 0.0, whole)
    return torch.where(_is_zero(b, a), divided, whole)


def remainder(a: Tensor, b: Tensor | float) -> Tensor:
    """Compute the remainder that has the divisor's sign."""
    if _divides_by_size(a, b):
        return torch.remainder(a, _as_tensor(b, a))
    if _is_integer(a) and _is_integer(b):
        return NotImplemented
    remains = torch.fmod(a, b)
    has_other_sign = (remains != 0) & ((remains < 0) != _is_negative(b, a))
    return torch.where(has_other_sign, remains + b, remains)


def _is_negative(b: Tensor | float, like: Tensor) -> Tensor:
    return b < 0 if isinstance(b, Tensor) else torch.full_like(like, b < 0, dtype=torch.bool)


def _is_zero(b: Tensor | float, like: Tensor) -> Tensor:
    return b == 0 if isinstance(b, Tensor) else torch.full_like(like, b == 0, dtype=torch.bool)


def _unchanged_integer(x: Tensor) -> Tensor:
    """ceil, floor, round, trunc of integers."""
    return x.clone() if _is_integer(x) else NotImplemented


def _never_for_integers(x: Tensor) -> Tensor:
    """isnan and isinf of integers."""
    return torch.zeros_like(x, dtype=torch.bool) if _is_integer(x) else NotImplemented


def _relu(x: Tensor) -> Tensor:
    """ONNX Runtime has no Relu for int64."""
    return x.clamp(min=0) if _is_integer(x) else NotImplemented


DIVISION: Mapping[str, Callable[..., Any]] = {
    "div.Tensor_mode": divide,
    "div.Scalar_mode": divide,
    "floor_divide": floor_divide,
    "floor_divide.Scalar": floor_divide,
    "remainder.Tensor": remainder,
    "remainder.Scalar": remainder,
    "ceil": _unchanged_integer,
    "floor": _unchanged_integer,
    "round": _unchanged_integer,
    "trunc": _unchanged_integer,
    "isnan": _never_for_integers,
    "isinf": _never_for_integers,
    "relu": _relu,
}
