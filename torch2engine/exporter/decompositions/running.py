"""Running maxima, minima and products.

Enters: the arguments of one operator. Leaves: its result. Separate because ONNX has a running sum alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import highest

__all__ = ["RUNNING", "cummax", "cumprod"]


def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Compute the largest element so far, and the last place where it stands; a NaN stays."""
    return _running_extreme(x, dim, torch.ge, _least_value(x))


def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Compute the least element so far, and the last place where it stands; a NaN stays."""
    return _running_extreme(x, dim, torch.le, _largest_value(x))


def _running_extreme(
    x: Tensor, dim: int, wins: Callable[[Tensor, Tensor], Tensor], neutral: float
) -> tuple[Tensor, Tensor]:
    """Compare every element with the one 1, 2, 4, ... places before, so that each has seen all before it."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values = x.movedim(dim, -1)
    length = values.shape[-1]
    most = highest(length)
    if most is None or x.dtype == torch.bool:
        return NotImplemented
    places = torch.arange(length, device=x.device).expand(values.shape)
    step = 1
    while step < most:
        earlier = _shifted(values, step, neutral)
        earlier_places = _shifted(places, step, 0)
        later_wins = values.isnan() | (wins(values, earlier) & ~earlier.isnan())
        values = torch.where(later_wins, values, earlier)
        places = torch.where(later_wins, places, earlier_places)
        step *= 2
    return values.movedim(-1, dim), places.movedim(-1, dim)


def _shifted(x: Tensor, step: int, neutral: float) -> Tensor:
    """Every element `step` places later along the last dimension; neutral elements fill the front."""
    before = torch.full((*x.shape[:-1], step), neutral, dtype=x.dtype, device=x.device)
    return torch.cat((before, x), -1).narrow(-1, 0, x.shape[-1])


def _least_value(x: Tensor) -> float:
    return -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _largest_value(x: Tensor) -> float:
    return torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).max


def cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Compute the product of the elements so far.

    Memory grows with the square of the dimension's size. An intermediate product may overflow in float32 where
    PyTorch's does not, since PyTorch multiplies in float64 on a CPU.
    """
    if dtype is not None:
        x = x.to(dtype)
    elif not x.is_floating_point():
        x = x.to(torch.int64)
    if x.dim() == 0:
        return x.clone()
    last = x.movedim(dim, -1)
    places = torch.arange(last.shape[-1], device=x.device)
    so_far = places.unsqueeze(-1) >= places
    factors = torch.where(so_far, last.unsqueeze(-2), 1)
    return factors.prod(-1).movedim(-1, dim)


RUNNING: Mapping[str, Callable[..., Any]] = {
    "cummax": cummax,
    "cummin": cummin,
    "cumprod": cumprod,
}
