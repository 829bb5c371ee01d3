"""What is made of a graph for a range of sizes, and made again where a call leaves the range.

Enters: the sizes of a call. Leaves: an engine, or a program in parts, that holds for them. Separate because both grow
in the same way: by powers of two, so that many sizes need few versions; and by single sizes where no range holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import sympy

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis
from torch2engine.fallback.graph_layout import GraphLayout

__all__ = ["Sizes", "TooManySizesError", "VersionsBySize", "dynamic_axes"]

V = TypeVar("V")

Sizes: TypeAlias = "Mapping[sympy.Symbol, int]"
"""The size of every dynamic axis."""

_MOST_SINGLE_SIZES = 8


class TooManySizesError(Exception):
    """No version holds for a range of sizes, and enough single sizes have one."""


class VersionsBySize(Generic[V]):
    """Versions of one thing for different sizes. Not for several threads at once.

    Args:
        layout: knows the sizes that torch has traced the graph for.
    """

    def __init__(self, layout: GraphLayout) -> None:
        self._layout = layout
        self._ranged: V | None = None
        self._largest: Sizes = {}
        self._single: dict[tuple[int, ...], V] = {}
        self._has_range = True

    def find_or_make(self, sizes: Sizes, make: Callable[[Sizes], V]) -> V:
        """Return the version for these sizes.

        Args:
            sizes: of a call.
            make: makes a version up to the largest sizes that it is given; without any, for the call's sizes alone.

        Raises:
            TooManySizesError: each size needs a version of its own.
            DynamicAxisError: from `make`, for a graph without dynamic axes.
        """
        if self._has_range:
            if self._ranged is not None and all(size <= self._largest[symbol] for symbol, size in sizes.items()):
                return self._ranged
            largest = self._next_largest(sizes)
            try:
                self._ranged = make(largest)
            except DynamicAxisError:
                if not sizes:
                    raise
                self._has_range = False
            else:
                self._largest = largest
                return self._ranged
        key = tuple(sizes.values())
        if key not in self._single:
            if len(self._single) == _MOST_SINGLE_SIZES:
                raise TooManySizesError(f"every size needs an engine of its own, and {_MOST_SINGLE_SIZES} have one")
            self._single[key] = make({})
        return self._single[key]

    def made(self) -> list[V]:
        """Return all versions that there are."""
        return [*([] if self._ranged is None else [self._ranged]), *self._single.values()]

    def _next_largest(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        """Powers of two, but nothing beyond what torch has traced."""
        largest: dict[sympy.Symbol, int] = {}
        for symbol, size in sizes.items():
            high = self._layout.ranges[symbol].high
            rounded = max(self._largest.get(symbol, 0), 2, 1 << (size - 1).bit_length())
            largest[symbol] = rounded if high is None else max(size, min(rounded, high))
        return largest


def dynamic_axes(layout: GraphLayout, sizes: Sizes, largest: Sizes) -> dict[str, dict[int, Axis | str]]:
    """The dynamic axes of every tensor as deploy() takes them: an axis, or an expression over axes.

    Args:
        layout: knows which dimensions are symbolic.
        sizes: of the call.
        largest: of every axis; empty for a graph of these sizes alone.
    """
    axes: dict[Any, Axis] = {}
    for symbol, high in largest.items():
        least = max(1, min(layout.ranges[symbol].low, sizes[symbol]))
        axes[symbol] = Axis(str(symbol), min=least, opt=sizes[symbol], max=high)
    return {
        name: {
            index: axes[size] if size in axes else str(size)
            for index, size in enumerate(shape)
            if axes and isinstance(size, sympy.Basic) and not size.is_number
        }
        for name, shape in layout.tensors.items()
    }
