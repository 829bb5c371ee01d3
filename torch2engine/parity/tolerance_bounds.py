"""A user's tolerance + a precision and a runtime → the bounds for one output.

Enters: `Tolerance` or None, facts about the candidate. Leaves: plain numbers. Separate because a comparison needs every
bound, and the precision and the runtime give the bounds that the user left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch2engine.core.config import Tolerance, Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import PRECISION_TYPES, quoted, sensitivity_factor
from torch2engine.core.wording import did_you_mean

__all__ = ["MEANINGFUL", "Bounds"]

MEANINGFUL = 0.05
"""Where a larger relative L2 error is allowed, a comparison proves little."""

_MOST = 0.25  # relative L2 error; no sensitivity allows more, since such answers are useless


@dataclass(frozen=True)
class Bounds:
    """The largest errors that an output may have.

    Args:
        rel_l2, max_rel, abs, mismatch: as in `Tolerance`.
        factor: the reference's sensitivity times this factor is allowed as well; 0 where the user gave `rel_l2`.
        near_tie: scores that differ by this share of their size may be chosen in either order.
        smallest: differences up to this value count as zero in every part of an output.
        by_output: other bounds for the outputs that are named.
    """

    rel_l2: float
    max_rel: float
    abs: float
    mismatch: float = 0.0
    factor: float = 0.0
    near_tie: float = 0.0
    smallest: float = 0.0
    by_output: Mapping[str, Bounds] = field(default_factory=dict[str, "Bounds"])

    @classmethod
    def of(cls, tolerance: Tolerances | None, precision: str, runtime: str = "") -> Bounds:
        """Take the user's bounds; the precision gives the bounds that the user left out.

        Args:
            tolerance: the user's, or None; or a tolerance for each of some outputs.
            precision: what the candidate computes in.
            runtime: what computes it, as for `sensitivity_factor`; "" if sensitivity allows nothing.
        """
        if isinstance(tolerance, Mapping):
            by_output = {name: cls.of(one, precision, runtime) for name, one in tolerance.items()}
            return replace(cls.of(None, precision, runtime), by_output=by_output)
        row = PRECISION_TYPES[precision]
        chosen = tolerance or Tolerance()
        share = row.onnxruntime_share if runtime == "onnxruntime" else 1.0
        return cls(
            rel_l2=row.rel_l2 * share if chosen.rel_l2 is None else chosen.rel_l2,
            max_rel=row.max_rel * share if chosen.max_rel is None else chosen.max_rel,
            abs=row.abs if chosen.abs is None else chosen.abs,
            mismatch=row.mismatch if chosen.mismatch is None else chosen.mismatch,
            factor=sensitivity_factor(runtime, precision) if chosen.rel_l2 is None else 0.0,
            near_tie=row.rel_l2 if chosen.rel_l2 is None else chosen.rel_l2,
            smallest=row.smallest,
        )

    def of_output(self, name: str) -> Bounds:
        """Give the bounds of one output."""
        return self.by_output.get(name, self)

    def check_names(self, names: Collection[str]) -> None:
        """Refuse bounds for outputs that do not exist.

        Raises:
            InputError: naming the outputs, and the nearest one.
        """
        for name in self.by_output:
            if name not in names:
                raise InputError(
                    "tolerance",
                    got=f"one for output {name!r}",
                    allowed=f"one for {quoted(names, 'or')}",
                    fix=did_you_mean(name, names, self.by_output) or "name an output of the model",
                )

    def tightened(self, share: float, rel_l2: float, max_rel: float) -> Bounds:
        """Scale all bounds by `share`, but keep rel_l2 and max_rel at least at the given values."""
        return replace(
            self,
            rel_l2=max(self.rel_l2 * share, rel_l2),
            max_rel=max(self.max_rel * share, max_rel),
            factor=self.factor * share,
            by_output={name: one.tightened(share, rel_l2, max_rel) for name, one in self.by_output.items()},
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
