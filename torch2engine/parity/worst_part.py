"""Parts of an output, each with bounds of its own: slices along every dimension, and elements of one magnitude.

Enters: blocks of squares, with how far rounding alone moves each element. Leaves: the part that fits worst. Separate
from `figures` because one scale for a whole tensor hides errors of small values beside large ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "GROUP",
    "NOISE",
    "OCTAVE_COUNT",
    "OCTAVE_OFFSET",
    "Allowance",
    "BlockSquares",
    "Bools",
    "Floats",
    "MagnitudeSums",
    "PartFigure",
    "SliceSums",
    "octaves",
    "ratio",
    "root_mean_square",
]

Floats: TypeAlias = "npt.NDArray[np.float64]"
Bools: TypeAlias = "npt.NDArray[np.bool_]"
Index: TypeAlias = "tuple[slice, ...]"

GROUP = 16
"""Fewer elements have no reliable root mean square: thinner slices are taken with their neighbours."""
NOISE = 0.2
"""Of the allowed error may lie in any slice, since a ReLU leaves dead channels, or between rows."""

_MEASURED_GROUP = 4  # enough elements for a part, where the movement of each was measured
_SPREAD = 3.0  # a part may have this multiple of its share of the noise
# Binary exponents of float64 lie within -1074..1024; an octave is an exponent plus the offset.
OCTAVE_OFFSET = 1100
OCTAVE_COUNT = 2200


@dataclass(frozen=True)
class BlockSquares:
    """One block of an output. An element that does not count is 0 in every array.

    Args:
        reference, difference, noise: squares of the reference, of the difference and of the reference's movement; for
            integers `difference` says which elements differ.
        counted, zeros: which elements count, and which of these are 0 in the reference.
    """

    reference: Floats
    difference: Floats
    noise: Floats
    counted: Bools
    zeros: Bools

    def arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        """Give the arrays in the order of the rows of `_PartSums.totals`."""
        return self.reference, self.difference, self.noise, self.counted, self.zeros


@dataclass(frozen=True)
class PartFigure:
    """The part that fits worst.

    Args:
        place: e.g. "slice [:, 3]", or "the elements of magnitude 0.5 to 1".
        share: root mean square of the differences, divided by that of the reference; for integers the share of elements
            that differ.
        excess: `share` divided by the share that is allowed in this part.
    """

    place: str
    share: float
    excess: float


@dataclass(frozen=True)
class Allowance:
    """The largest errors that parts of one output may have; all values have the same scale.

    Args:
        level: root mean square of the largest difference that the whole output may have.
        noise: root mean square of the reference's movement by rounding; 0 where it was not measured.
        max_rel: the bound of this name.
        floor: the largest difference that counts as zero where no movement was measured.
        smallest: the largest difference that counts as zero everywhere.
    """

    level: float
    noise: float
    max_rel: float
    floor: float
    smallest: float

    @property
    def gain(self) -> float:
        """The largest error of a part, as a multiple of the part's own movement; 0 where no movement was measured."""
        return self.level / self.noise if self.noise else 0.0

    def of_parts(self, sums: _PartSums) -> Floats:
        """Give the root mean square of the difference that each part may have."""
        relative = self.max_rel * sums.reference
        if not self.noise:
            return relative + max(NOISE * self.level, self.floor)
        moving = sums.noise[sums.noise > 0]
        typical = min(1.0, float(np.median(moving)) / self.noise) if len(moving) else 1.0
        # Where the reference is exactly 0, as after a ReLU, rounding may move the candidate alone.
        zeros = NOISE * self.level * typical * np.sqrt(sums.zero_share)
        floor = np.where(sums.noise > 0, self.smallest, self.floor)
        return relative + np.maximum(np.maximum(_SPREAD * self.gain * sums.noise, zeros), floor)


class _PartSums:
    """Sums over the elements of every part.

    Args:
        count: the number of parts.
    """

    def __init__(self, count: int) -> None:
        self.totals: Floats = np.zeros((5, count))  # squares of reference, difference and noise; elements; zeros

    @property
    def count(self) -> Floats:
        """Elements that count."""
        return self.totals[3]

    @property
    def reference(self) -> Floats:
        """Root mean square of the reference."""
        return root_mean_square(self.totals[0], self.count)

    @property
    def noise(self) -> Floats:
        """Root mean square of the reference's movement."""
        return root_mean_square(self.totals[2], self.count)

    @property
    def zero_share(self) -> Floats:
        """Share of the elements that are 0 in the reference."""
        return self.totals[4] / np.maximum(self.count, 1)

    def worst(self, allowance: Allowance) -> tuple[int, float, float]:
        """Find the part of floating values with the largest excess over its bound: its number, share and excess."""
        difference = root_mean_square(self.totals[1], self.count)
        excess = ratio(difference, allowance.of_parts(self))
        number = int(np.argmax(excess))
        return number, float(ratio(difference, self.reference)[number]), float(excess[number])


class SliceSums(_PartSums):
    """Sums over the slices along one dimension; neighbouring thin slices are added into one entry.

    Args:
        shape: of the output.
        axis: the dimension.
        is_measured: whether the movement of every element is known.
    """

    def __init__(self, shape: tuple[int, ...], axis: int, is_measured: bool = False) -> None:
        thickness = math.prod(shape) // shape[axis]
        self.axis = axis
        self.size = shape[axis]
        self.per_group = -(-(_MEASURED_GROUP if is_measured else GROUP) // thickness)
        super().__init__(max(1, self.size // self.per_group))

    def groups(self, index: Index) -> npt.NDArray[np.intp]:
        """Give the entry of each row of a block."""
        rows = np.arange(int(index[self.axis].start), int(index[self.axis].stop))
        return np.minimum(rows // self.per_group, len(self.count) - 1)

    def add(self, index: Index, block: BlockSquares) -> None:
        """Add a block that lies at an index."""
        groups = self.groups(index)
        others = tuple(axis for axis in range(block.counted.ndim) if axis != self.axis)
        for total, values in zip(self.totals, block.arrays(), strict=True):
            total += np.bincount(groups, values.sum(axis=others, dtype=np.float64), len(total))

    def worst_slice(self, allowance: Allowance) -> PartFigure:
        """Find the slice with the largest excess over its bound."""
        number, share, excess = self.worst(allowance)
        return PartFigure(self._place(number), share, excess)

    def worst_exact_slice(self) -> PartFigure:
        """Find the slice of integers in which the largest share differs; half of a slice may differ."""
        share = ratio(self.totals[1], self.count)
        number = int(np.argmax(share))
        return PartFigure(self._place(number), float(share[number]), float(share[number]) / 0.5)

    def _place(self, number: int) -> str:
        start = number * self.per_group
        stop = self.size if number == len(self.count) - 1 else start + self.per_group
        rows = str(start) if stop == start + 1 else f"{start}:{stop}"
        return f"slice [{':, ' * self.axis}{rows}]"

    def along(self, values: Floats, index: Index, rank: int) -> Floats:
        """Spread a value of each entry over a block, to be broadcast."""
        shape = [1] * rank
        shape[self.axis] = -1
        return values[self.groups(index)].reshape(shape)


class MagnitudeSums(_PartSums):
    """Sums over the elements whose reference lies in one octave, zeros in the lowest one."""

    def __init__(self) -> None:
        super().__init__(OCTAVE_COUNT)

    def add(self, scaled: Floats, block: BlockSquares) -> None:
        """Add a block; `scaled` has the values of the reference."""
        groups = octaves(np.abs(scaled)).ravel()
        for total, values in zip(self.totals, block.arrays(), strict=True):
            total += np.bincount(groups, values.ravel(), len(total))

    def worst_magnitude(self, allowance: Allowance, scale: float) -> PartFigure | None:
        """Find the octave with the largest excess over its bound; small octaves are merged with larger ones."""
        merged, ends = self._merged()
        if len(ends) < 2:
            return None
        number, share, excess = merged.worst(allowance)
        high = 2.0 ** (ends[number] - OCTAVE_OFFSET) / scale
        return PartFigure(f"the part of all elements below {high:.3g}", share, excess)

    def likely_noise(self, scaled: Floats) -> Floats:
        """Give the root mean square movement in each element's octave; 0 where the octave has few elements."""
        noise = np.where(self.count >= GROUP, self.noise, 0.0)
        return noise[octaves(np.abs(scaled))]

    def _merged(self) -> tuple[_PartSums, list[int]]:
        """Merge octaves until each group has enough elements; return the last octave of every group."""
        columns: list[Floats] = []
        ends: list[int] = []
        waiting = np.zeros(5)
        for octave in np.flatnonzero(self.count):
            waiting = waiting + self.totals[:, octave]
            if waiting[3] >= GROUP:
                columns.append(waiting)
                ends.append(int(octave))
                waiting = np.zeros(5)
        if waiting[3] and columns:
            columns[-1] = columns[-1] + waiting
        merged = _PartSums(len(columns))
        if columns:
            merged.totals = np.stack(columns, axis=1)
        return merged, ends


def octaves(magnitudes: Floats) -> npt.NDArray[np.intp]:
    """Give the octave of every magnitude; the octave of 0 is below all others."""
    exponents = np.frexp(magnitudes)[1].astype(np.intp) + OCTAVE_OFFSET
    return np.where(magnitudes > 0, exponents, 0)


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide, where 0 / 0 is 0 and anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(above == 0, 0.0, above / below)


def root_mean_square(squares: Floats, count: Floats) -> Floats:
    """Take the root of the mean."""
    return np.sqrt(squares / np.maximum(count, 1))
