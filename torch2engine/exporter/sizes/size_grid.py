"""The sizes that a call's dynamic axes may have, as arrays that a condition is evaluated on.

Enters: the axes with their ranges. Leaves: points, each with one size for every axis. They are all points if these are
few, else a choice that a wrong condition can hardly pass. Separate because it is arithmetic on ranges, without torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.spec import Axis

__all__ = ["SizeGrid", "Sizes", "make_size_grid"]

Sizes = NDArray[np.int64]

_MOST_POINTS = 1 << 16
_MOST_OF_ONE_AXIS = 1 << 14
_SMALL = 16  # conditions fail at small sizes above all
_RANDOM_POINTS = 1 << 13


@dataclass(frozen=True)
class SizeGrid:
    """Points in the space of sizes.

    Args:
        sizes: {axis name: its size at every point}.
        count: the number of points.
    """

    sizes: Mapping[str, Sizes]
    count: int


def make_size_grid(axes: Sequence[Axis]) -> SizeGrid:
    """Choose the points for these axes.

    Up to 65536 combinations: all. Above: every size of one axis with the others at min, opt and max; all small sizes
    and corners together; and random points.
    """
    every = [_all_sizes(axis) for axis in axes]
    if np.prod([float(len(sizes)) for sizes in every]) <= _MOST_POINTS:
        points = np.array(list(itertools.product(*every)), dtype=np.int64).reshape(-1, len(axes))
    else:
        parts = [*_sweeps(axes, every), _corners(axes, every), _random_points(axes)]
        points = np.unique(np.concatenate(parts), axis=0)
    return SizeGrid({axis.name: points[:, index] for index, axis in enumerate(axes)}, len(points))


def _all_sizes(axis: Axis) -> Sizes:
    low, _, high = axis.range
    return np.arange(low, high + 1, axis.multiple_of, dtype=np.int64)


def _sweeps(axes: Sequence[Axis], every: Sequence[Sizes]) -> list[Sizes]:
    """Each axis through its sizes while the others stay at min, opt and max."""
    parts: list[Sizes] = []
    for index, sizes in enumerate(every):
        thinned = sizes
        if len(sizes) > _MOST_OF_ONE_AXIS:
            spread = np.linspace(0, len(sizes) - 1, _MOST_OF_ONE_AXIS).astype(np.int64)
            thinned = sizes[np.union1d(spread, np.arange(_MOST_OF_ONE_AXIS // 2))]
        for which in range(3):
            part = np.tile(np.array([axis.range[which] for axis in axes], dtype=np.int64), (len(thinned), 1))
            part[:, index] = thinned
            parts.append(part)
    return parts


def _corners(axes: Sequence[Axis], every: Sequence[Sizes]) -> Sizes:
    """Small sizes and the largest ones of all axes together; fewer of each where there are many axes."""
    per_axis = max(2, min(_SMALL, int(_MOST_POINTS ** (1 / len(axes))) - 2))
    chosen = [
        np.union1d(sizes[:per_axis], [axis.range[1], axis.range[2]]) for axis, sizes in zip(axes, every, strict=True)
    ]
    combinations = itertools.islice(itertools.product(*chosen), _MOST_POINTS)
    return np.array(list(combinations), dtype=np.int64)


def _random_points(axes: Sequence[Axis]) -> Sizes:
    generator = np.random.default_rng(RANDOM_SEED)
    columns = [
        generator.integers(axis.min // axis.multiple_of, axis.range[2] // axis.multiple_of + 1, _RANDOM_POINTS)
        * axis.multiple_of
        for axis in axes
    ]
    return np.stack(columns, axis=1).astype(np.int64)
