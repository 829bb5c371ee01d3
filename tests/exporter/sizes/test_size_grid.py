"""The sizes that conditions are evaluated at: all where they are few, else those at which conditions fail."""

from __future__ import annotations

import numpy as np

from torch2engine.core.spec import Axis
from torch2engine.exporter.sizes.size_grid import make_size_grid


def test_few_sizes_are_all_there() -> None:
    """Every combination comes once, in multiples of each axis's step."""
    grid = make_size_grid([Axis("n", 2, 4, 6, multiple_of=2), Axis("m", 1, 2, 2)])
    assert grid.count == 6
    assert list(zip(grid.sizes["n"].tolist(), grid.sizes["m"].tolist(), strict=True)) == [
        (n, m) for n in (2, 4, 6) for m in (1, 2)
    ]


def test_every_size_of_each_axis_is_there_among_many_combinations() -> None:
    """No condition on one axis escapes, and corners and small sizes come together."""
    axes = [Axis("b", 1, 8, 64), Axis("n", 3, 1023, 4098, multiple_of=3)]
    grid = make_size_grid(axes)
    points = set(zip(grid.sizes["b"].tolist(), grid.sizes["n"].tolist(), strict=True))
    assert set(grid.sizes["b"].tolist()) == set(range(1, 65))
    assert set(grid.sizes["n"].tolist()) == set(range(3, 4099, 3))
    assert {(1, 3), (64, 4098), (1, 4098), (64, 3), (2, 6)} <= points
    assert grid.count == len(points)


def test_axes_of_a_great_range_keep_small_sizes_and_ends() -> None:
    """A million sizes are thinned at the upper end only."""
    grid = make_size_grid([Axis("n", 1, 1000, 1_000_000)])
    assert set(range(1, 8000)) <= set(grid.sizes["n"].tolist())
    assert grid.sizes["n"].max() == 1_000_000


def test_grid_is_the_same_each_time() -> None:
    """Two exports judge at the same sizes."""
    axes = [Axis("b", 1, 8, 500), Axis("n", 1, 8, 500)]
    first = make_size_grid(axes)
    second = make_size_grid(axes)
    assert all(np.array_equal(first.sizes[name], second.sizes[name]) for name in ("b", "n"))
