"""Volumes sampled at the points of a grid.

Enters: the arguments of `grid_sampler_3d`. Leaves: its result, from the eight elements around each point. Separate
because ONNX Runtime and TensorRT sample images alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import is_fixed

__all__ = ["GRIDS"]

_NEAREST = 1
_ZEROS = 0
_BORDER = 1
_REFLECTION = 2


def _grid_sampler_3d(
    x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """`grid_sampler_3d` of x [N, C, D, H, W] at grid [N, d, h, w, 3], whose last dimension counts W, H, D."""
    sizes = x.shape[2:]
    points = [_place(grid[..., 2 - number], size, padding_mode, align_corners) for number, size in enumerate(sizes)]
    if interpolation_mode == _NEAREST:
        return _elements(x, [point.round() for point in points], padding_mode)
    lower = [point.floor() for point in points]
    result: Tensor | None = None
    for corner in itertools.product((0, 1), repeat=3):
        weight: Tensor | None = None
        for point, low, side in zip(points, lower, corner, strict=True):
            share = point - low if side else 1.0 - (point - low)
            weight = share if weight is None else weight * share
        assert weight is not None
        element = _elements(x, [low + side for low, side in zip(lower, corner, strict=True)], padding_mode)
        part = element * weight.unsqueeze(1)
        result = part if result is None else result + part
    assert result is not None
    return result


def _place(coordinate: Tensor, size: int, padding_mode: int, align_corners: bool) -> Tensor:
    """The place of a coordinate of -1 .. 1, as a fractional index."""
    if align_corners:
        place = (coordinate + 1.0) * 0.5 * (size - 1)
    else:
        place = ((coordinate + 1.0) * size - 1.0) * 0.5
    if padding_mode == _REFLECTION:
        place = _reflected(place, size, align_corners)
    return place if padding_mode == _ZEROS else torch.minimum(place.clamp(min=0.0), torch.full_like(place, size - 1))


def _reflected(place: Tensor, size: int, align_corners: bool) -> Tensor:
    """A place outside, thrown back at the first and the last element, or at their outer edges."""
    if align_corners:
        first = 0.0
        span = size - 1
    else:
        first = -0.5
        span = size
    if is_fixed(span) and span == 0:
        return torch.zeros_like(place)
    distance = (place - first).abs()
    return span - (torch.remainder(distance, 2 * span) - span).abs() + first


def _elements(x: Tensor, places: Sequence[Tensor], padding_mode: int) -> Tensor:
    """x's elements at whole places [N, d, h, w] of each dimension: [N, C, d, h, w]."""
    inside: Tensor | None = None
    flat: Tensor | None = None
    for place, size in zip(places, x.shape[2:], strict=True):
        is_inside = (place >= 0) & (place <= size - 1)
        inside = is_inside if inside is None else inside & is_inside
        index = torch.minimum(place.clamp(min=0.0), torch.full_like(place, size - 1)).to(torch.int64)
        flat = index if flat is None else flat * size + index
    assert inside is not None and flat is not None
    rows = flat.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, rows).reshape(*x.shape[:2], *flat.shape[1:])
    return torch.where(inside.unsqueeze(1), found, 0.0) if padding_mode == _ZEROS else found


GRIDS: Mapping[str, Callable[..., Any]] = {"grid_sampler_3d": _grid_sampler_3d}
