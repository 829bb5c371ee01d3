"""A user's tolerance + a precision and a runtime → the bounds by which one output is judged.

Enters: `Tolerance` or None, facts about the candidate. Leaves: plain numbers. Separate because the judge needs every
bound, and what the user left out follows from the precision and from who computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch2engine.core.config import Tolerance, default_tolerance
from torch2engine.core.precisions import PRECISION_TYPES, sensitivity_factor

__all__ = ["MEANINGFUL", "Bounds"]

MEANINGFUL = 0.05
"""Where a larger relative L2 error is allowed, a comparison proves little."""

_MOST = 0.25  # relative L2 error; no sensitivity allows more, since garbage begins there


@dataclass(frozen=True)
class Bounds:
    """What an output may be off.

    Args:
        rel_l2, max_rel, abs, mismatch: as in `Tolerance`.
        factor: the reference's sensitivity times this is allowed as well; 0 where the user gave `rel_l2`.
        smallest: differences up to this count as none in whatever part of an output.
    """

    rel_l2: float
    max_rel: float
    abs: float
    mismatch: float = 0.0
    factor: float = 0.0
    smallest: float = 0.0

    @classmethod
    def of(cls, tolerance: Tolerance | None, precision: str, runtime: str = "") -> Bounds:
        """Take the user's bounds, and for None those of the precision.

        Args:
            tolerance: the user's, or None.
            precision: what the candidate computes in.
            runtime: what computes it, as `sensitivity_factor` knows it; "" for no allowance by sensitivity.
        """
        row = PRECISION_TYPES[precision]
        chosen = default_tolerance(precision) if tolerance is None else tolerance
        return cls(
            rel_l2=chosen.rel_l2,
            max_rel=chosen.max_rel,
            abs=chosen.abs,
            mismatch=chosen.mismatch,
            factor=sensitivity_factor(runtime, precision) if tolerance is None else 0.0,
            smallest=row.smallest,
        )

    def tightened(self, share: float, rel_l2: float, max_rel: float) -> Bounds:
        """Give a share of these bounds, but no less than two of them."""
        return replace(
            self,
            rel_l2=max(self.rel_l2 * share, rel_l2),
            max_rel=max(self.max_rel * share, max_rel),
            factor=self.factor * share,
        )

    @property
    def tolerance(self) -> Tolerance:
        """The bounds as a user would write them."""
        return Tolerance(rel_l2=self.rel_l2, max_rel=self.max_rel, abs=self.abs, mismatch=self.mismatch)

    def allowed_rel_l2(self, sensitivity: float) -> float:
        """Give the largest relative L2 error of an output that rounding moves by `sensitivity` of its size.

        Args:
            sensitivity: NaN where it was not measured.
        """
        if math.isnan(sensitivity):
            return self.rel_l2
        return max(self.rel_l2, min(self.factor * sensitivity, _MOST))
