"""Counts of values.

Enters: the arguments of one operator. Leaves: its result by another form of the same operator. Separate because on a
GPU PyTorch counts integers too, as mixtures of experts do, and torch.onnx counts floating numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["COUNTING"]


def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """`histc` of integers, in float32 that holds them exactly up to 16 million."""
    if x.is_floating_point():
        return NotImplemented
    return torch.histc(x.to(torch.float32), bins, min, max).to(x.dtype)


COUNTING: Mapping[str, Callable[..., Any]] = {"histc": _histc}
