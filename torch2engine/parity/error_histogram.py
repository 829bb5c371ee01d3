"""Differences, block by block → how many elements are how far off.

Enters: differences between a candidate and its reference, and at the end the reference's size. Leaves: counts by powers
of ten, for a reader. Apart from `figures`, because no verdict follows from them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from torch2engine.parity.parity_report import ERROR_DECADES
from torch2engine.parity.worst_part import OCTAVE_COUNT, OCTAVE_OFFSET, octaves

__all__ = ["ErrorHistogram"]

_MIDDLE = -0.5  # of an octave, as a power of two


class ErrorHistogram:
    """Counts elements by the octave of their error while blocks come, and by powers of ten at the end."""

    def __init__(self) -> None:
        self._counts = np.zeros(OCTAVE_COUNT, dtype=np.int64)

    def add(self, differences: npt.NDArray[np.float64], counted: npt.NDArray[np.bool_]) -> None:
        """Add a block.

        Args:
            differences: candidate minus reference.
            counted: which elements count.
        """
        self._counts += np.bincount(octaves(np.abs(differences[counted])), minlength=OCTAVE_COUNT)

    def decades(self, size: float) -> tuple[int, ...]:
        """Count the elements by error.

        Args:
            size: the unit of the errors, e.g. the reference's root mean square.

        Returns:
            numbers of elements. The first number is for errors below 1e-9 of the size. A number for each step from one
            power of ten in `ERROR_DECADES` to the next follows. The last number is for errors of the size or more. ()
            if the size is 0. An octave of errors counts whole, by its middle.
        """
        if not size:
            return ()
        counts = [0] * (len(ERROR_DECADES) + 1)
        for octave in map(int, np.flatnonzero(self._counts)):
            decade = math.floor((octave - OCTAVE_OFFSET + _MIDDLE) * math.log10(2) - math.log10(size))
            place = min(max(decade - ERROR_DECADES[0] + 1, 0), len(ERROR_DECADES)) if octave else 0
            counts[place] += int(self._counts[octave])
        return tuple(counts)
