"""Versions of a graph's engine for ranges of sizes; a call outside all ranges makes a new version.

Enters: the sizes of a call. Leaves: an engine, or a program in parts, that holds for them. Separate because both grow
in the same way: by powers of two, so that many sizes need few versions; and by single sizes where no range holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import sympy
from torch.utils._sympy.symbol import SymT, symbol_is_type

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis
from torch2engine.fallback.graph_layout import GraphLayout

__all__ = ["Sizes", "TooManySizesError", "Version", "VersionsBySize", "dynamic_axes"]

V = TypeVar("V")

Sizes: TypeAlias = "Mapping[sympy.Symbol, int]"
"""The size of every dynamic axis."""

_MOST_SINGLE_SIZES = 8
_ROOM_FOR_VALUES = 8  # a size that depends on values may be that many times as large in another call


class TooManySizesError(Exception):
    """No version holds for a range of sizes, and the limit of versions for single sizes is reached."""


@dataclass(frozen=True)
class Version(Generic[V]):
    """One version, and the sizes that it holds for.

    Args:
        value: the version.
        sizes: of every dynamic axis, in the layout's order: the largest, or the only ones.
        is_range: whether it holds for all sizes up to these.
    """

    value: V
    sizes: tuple[int, ...]
    is_range: bool


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
        if (found := self.find(sizes)) is not None:
            return found
        if self._has_range:
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
        if len(self._single) == _MOST_SINGLE_SIZES:
            raise TooManySizesError(f"every size needs an engine of its own, and {_MOST_SINGLE_SIZES} have one")
        return self._single.setdefault(tuple(sizes.values()), make({}))

    def find(self, sizes: Sizes) -> V | None:
        """Return the version for these sizes, or None if there is none yet."""
        largest = self._largest
        if self._ranged is not None and all(size <= largest[symbol] for symbol, size in sizes.items()):
            return self._ranged
        return self._single.get(tuple(sizes.values())) if self._single else None

    def made(self) -> list[Version[V]]:
        """Return all versions that there are."""
        ranged = [] if self._ranged is None else [Version(self._ranged, tuple(self._largest.values()), True)]
        return [*ranged, *(Version(value, sizes, False) for sizes, value in self._single.items())]

    def add(self, version: Version[V]) -> None:
        """Add a version that `made` returned for a graph with the same layout."""
        if version.is_range:
            self._ranged = version.value
            self._largest = dict(zip(self._layout.axes, version.sizes, strict=True))
        else:
            self._single[version.sizes] = version.value

    def _next_largest(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        """The next powers of two, limited to the sizes that torch has traced."""
        largest: dict[sympy.Symbol, int] = {}
        for symbol, size in sizes.items():
            high = self._layout.ranges[symbol].high
            room = _ROOM_FOR_VALUES if symbol_is_type(symbol, SymT.UNBACKED_INT) else 1
            rounded = max(self._largest.get(symbol, 0), 2, 1 << (room * size - 1).bit_length())
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
