"""Operators that PyTorch has under two names, and a difference whose sides are swapped.

Enters: the arguments of the second name. Leaves: the result of the first. Separate because torch.onnx promotes types
for the first names alone. A quotient of a float and an integer became an invalid graph, and `1.0 - mask` of an integer
mask no graph at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ALIASES"]

_FORMS = ("Tensor", "Scalar")


def _reversed_difference(x: Tensor, other: float, alpha: int = 1) -> Tensor:
    """`other - alpha * x` where a float number meets integers: they become floats first."""
    if x.is_floating_point() or x.is_complex() or not isinstance(other, float):
        return NotImplemented
    return torch.rsub(x.to(torch.get_default_dtype()), other, alpha=alpha)


ALIASES: Mapping[str, Callable[..., Any]] = {"rsub.Scalar": _reversed_difference} | {
    f"{alias}.{form}": function
    for alias, function in {
        "divide": torch.div,
        "true_divide": torch.div,
        "multiply": torch.mul,
        "subtract": torch.sub,
        "greater": torch.gt,
        "greater_equal": torch.ge,
        "less": torch.lt,
        "less_equal": torch.le,
        "not_equal": torch.ne,
    }.items()
    for form in _FORMS
}
