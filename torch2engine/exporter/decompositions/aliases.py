"""Operators that PyTorch has under two names.

Enters: the arguments of the second name. Leaves: the result of the first. Separate because torch.onnx promotes types
for the first names alone. A quotient of a float and an integer became an invalid graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["ALIASES"]

_FORMS = ("Tensor", "Scalar")

ALIASES: Mapping[str, Callable[..., Any]] = {
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
