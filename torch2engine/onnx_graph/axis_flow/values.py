"""The values that the analysis gives to tensors.

Enters: nothing. Leaves: the five kinds of values, and the exception by which a rule says that entries are mixed.
Separate because every rule reads and makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch2engine.onnx_graph.axis_flow.sizes import ONE, Size

__all__ = ["Entries", "Fixed", "Mixed", "Mixes", "Numbers", "Place", "Shape", "Sizes", "Value", "all_fixed"]

Shape: TypeAlias = "tuple[Size, ...]"


class Mixes(Exception):
    """A node lets entries influence each other. The text says how, with the node as its subject."""


@dataclass(frozen=True)
class Place:
    """The dimension along which entries lie.

    Args:
        dim: its index.
        outer: how many dimensions of a reshaped tensor lie before the axis in this dimension, as a product of sizes.
        inner: the same for those behind the axis. The dimension's size is outer * axis * inner.
    """

    dim: int
    outer: Size = ONE
    inner: Size = ONE

    def moved_to(self, dim: int) -> Place:
        """The same in another dimension."""
        return Place(dim, self.outer, self.inner)

    def size(self, axis: Size) -> Size:
        """The size of the dimension."""
        return self.outer.times(axis).times(self.inner)


@dataclass(frozen=True)
class Fixed:
    """The same tensor for all entries and for every number of them.

    Args:
        shape: None if its rank is unknown.
        numbers: the elements of a small constant vector of floats, such as the scales of a Resize.
    """

    shape: Shape | None = None
    numbers: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sizes:
    """A small integer tensor whose elements are known, such as a shape; they may depend on the number of entries.

    Args:
        shape: of rank 0 or 1.
        elements: one for each element.
    """

    shape: Shape
    elements: tuple[Size, ...]

    @property
    def follows_axis(self) -> bool:
        """Whether an element may depend on the number of entries."""
        return any(element.follows_axis for element in self.elements)


@dataclass(frozen=True)
class Entries:
    """Each entry depends only on the same entry of the inputs, and not on its own index or the number of entries."""

    shape: Shape
    place: Place


@dataclass(frozen=True)
class Numbers:
    """Indices that contain the numbers of the entries, 0, 1, 2 ..., along a dimension.

    Args:
        shape, place: as of `Entries`.
        column: which column of the last dimension has the numbers, the others being as in `Entries`; None: every one.
    """

    shape: Shape
    place: Place
    column: int | None = None


@dataclass(frozen=True)
class Mixed:
    """Entries influence each other, or their number does.

    Args:
        shape: of which sizes that are not known follow the axis; None if the rank is unknown.
        cause: the node that mixed them, and how.
    """

    shape: Shape | None
    cause: str


Value: TypeAlias = "Fixed | Sizes | Entries | Numbers | Mixed"


def all_fixed(values: Sequence[Value | None]) -> bool:
    """Tell whether none of the inputs that are there depends on the entries or on their number."""
    return all(
        value is None or isinstance(value, Fixed) or (isinstance(value, Sizes) and not value.follows_axis)
        for value in values
    )
