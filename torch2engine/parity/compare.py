"""Outputs of a reference and of a candidate + `Tolerance` → `ParityReport`.

Enters: outputs by name, as numpy arrays or torch tensors on any device. Leaves: one verdict per output, with its
figures and, for a failure, its reason. A room of its own, without torch, because every candidate (ONNX Runtime, an
engine, a user's own) is judged by the same rule, and because a judge that can't fail is worth nothing: whatever was
not compared has not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np

from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError, ParityError
from torch2engine.parity.figures import Figures, dtype_kind, dtype_name, element, measure

__all__ = ["OutputParity", "ParityReport", "compare"]

Number: TypeAlias = "bool | int | float | complex"

_NAMED = 4  # failures in an error's first line; the table below it has them all
_FOLLOWS = 0.3  # least correlation of the steps from row to row; a stale or constant output has none
_FAMILIAR = 64  # an integer value this often in the reference must not vanish from the candidate


@dataclass(frozen=True)
class OutputParity:
    """One output of one case, judged.

    Args:
        name, case: the output's name, and the case's, e.g. "max".
        passed: the verdict.
        reason: why it failed; "" if it passed.
        shape, dtype: the reference's (the candidate's for an output that the reference does not have).
        max_abs: largest |candidate − reference|.
        max_rel: largest |candidate − reference| in units of |reference| plus its row's root mean square.
        rel_l2: ‖candidate − reference‖₂ / ‖reference‖₂.
        cosine: cosine of the angle between the two, flattened.
        mismatch: share of the elements of an integer or bool output that differ; 0 for other dtypes.
        worst_index: where max_rel is, or the first element that is NaN or Inf in one only; None if not measured.
        nonfinite_reference, nonfinite_candidate: counts of NaN and ±Inf.
        reference_value, candidate_value: the elements at worst_index.

    Figures that could not be measured are NaN; norms leave out elements that are not finite and mask values.
    """

    name: str
    case: str
    passed: bool
    reason: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    max_abs: float = math.nan
    max_rel: float = math.nan
    rel_l2: float = math.nan
    cosine: float = math.nan
    mismatch: float = math.nan
    worst_index: tuple[int, ...] | None = None
    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    reference_value: Number | None = None
    candidate_value: Number | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not finite becomes None, a complex one a pair."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and whether the candidate answers like the reference.

    Args:
        rows: one per output and case.
        subject: who was compared, e.g. "PyTorch vs TensorRT".
        tolerance: the bounds.
        notes: what a reader should know besides, one sentence each.

    Printed, it is a table in plain text.
    """

    rows: tuple[OutputParity, ...]
    subject: str
    tolerance: Tolerance
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[OutputParity, ...]:
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def passed(self) -> bool:
        """True if something was compared and all of it passed."""
        return bool(self.rows) and not self.failures

    @property
    def worst(self) -> OutputParity | None:
        """The row with the largest rel_l2, failures before passes; None without rows."""
        return max(self.rows, key=_badness, default=None)

    def add(self, rows: Iterable[OutputParity], *, notes: Iterable[str] = ()) -> ParityReport:
        """The report with the rows of one more case."""
        return replace(self, rows=(*self.rows, *rows), notes=(*self.notes, *notes))

    def merge(self, other: ParityReport) -> ParityReport:
        """The report with all rows and notes of another one.

        Raises:
            InputError: the other one was judged by another tolerance.
        """
        if other.tolerance != self.tolerance:
            raise InputError(
                "ParityReport.merge",
                got=f"a report judged by {other.tolerance}",
                allowed=f"one judged by {self.tolerance}",
                fix="compare both with one tolerance",
            )
        return self.add(other.rows, notes=other.notes)

    def raise_if_failed(self) -> ParityReport:
        """Return this report if the candidate passed.

        Raises:
            ParityError: naming the outputs and cases that failed, and why; it carries this report and shows it.
        """
        if self.passed:
            return self
        failed = [f"output '{row.name}'{_of_case(row.case)}: {row.reason}" for row in self.failures]
        more = f" | and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        why = (" | ".join(failed[:_NAMED]) or "nothing was compared") + more
        fix = (
            "if the difference is meant, pass a wider tolerance=Tolerance(...)"
            if failed
            else "compare one case at least"
        )
        raise ParityError(f"parity, {self.subject}, {why}", report=self, fix=fix)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "tolerance": asdict(self.tolerance),
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = "case output tensor rel_l2 max_abs max_rel cosine worst verdict".replace("_", "-").split()
        cells = [head, *map(_cells, self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
        bounds = ", ".join(f"{name} {value:g}" for name, value in asdict(self.tolerance).items())
        if self.rows:
            share = f"{len(self.rows) - len(self.failures)} of {len(self.rows)} outputs passed"
        else:
            share = "nothing was compared"
        title = f"{self.subject}: {'passed' if self.passed else 'FAILED'}, {share} (allowed: {bounds})"
        return "\n".join([title, *(line.rstrip() for line in lines), *(f"note: {note}" for note in self.notes)])


def compare(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], tolerance: Tolerance, *, case: str = ""
) -> tuple[OutputParity, ...]:
    """Judge every output of one call.

    Args:
        reference, candidate: outputs by name: numpy arrays or torch tensors, of any shape, dtype and device. They are
            only read; what is not in host memory comes over block by block.
        tolerance: the bounds; its docstring is the rule.
        case: the call's name, e.g. "max".

    Returns:
        one row per output of the reference, in its order, then one per output that only the candidate has.
    """
    rows = [_judge(name, value, reference, candidate, tolerance) for name, value in reference.items()]
    for name, value in candidate.items():
        if name not in reference:
            rows.append(_row(name, value, "the reference has no such output"))
    return tuple(replace(row, case=case) for row in rows)


def _row(name: str, value: Any, reason: str) -> OutputParity:
    return OutputParity(name, "", not reason, reason, shape=tuple(getattr(value, "shape", ())), dtype=dtype_name(value))


def _judge(
    name: str, reference: Any, references: Mapping[str, Any], candidates: Mapping[str, Any], tolerance: Tolerance
) -> OutputParity:
    if name not in candidates:
        return _row(name, reference, "missing from the candidate")
    candidate = candidates[name]
    reason = _difference_in_kind(reference, candidate)
    if reason or 0 in reference.shape:
        return _row(name, reference, reason)
    figures = measure(reference, candidate, tolerance)
    where = figures.worst_index
    values = element(reference, where), element(candidate, where)
    reason = _reason(figures, tolerance, reference, values)
    if not reason and dtype_kind(dtype_name(reference)) == "exact":
        reason = _lost_value(reference, candidate, figures)
    if reason:
        reason += _likeness(name, candidate, figures, references, tolerance)
    return replace(
        _row(name, reference, reason),
        max_abs=figures.max_abs,
        max_rel=figures.max_rel,
        rel_l2=figures.rel_l2,
        cosine=figures.cosine,
        mismatch=figures.mismatch,
        worst_index=where,
        nonfinite_reference=figures.nonfinite_reference,
        nonfinite_candidate=figures.nonfinite_candidate,
        reference_value=values[0],
        candidate_value=values[1],
    )


def _difference_in_kind(reference: Any, candidate: Any) -> str:
    """Why the two can't be compared element by element, or ""."""
    for who, value in (("the reference", reference), ("the candidate", candidate)):
        if not (hasattr(value, "dtype") and hasattr(value, "shape")):
            return f"{who} is a {type(value).__name__}, neither a tensor nor an array"
        layout = str(getattr(value, "layout", "torch.strided")).removeprefix("torch.")
        if layout != "strided":
            return f"{who} is a {layout} tensor, only dense ones can be compared"
    expected, dtype = dtype_name(reference), dtype_name(candidate)
    if dtype != expected:
        return f"dtype is {dtype}, the reference's is {expected}"
    if not dtype_kind(dtype):
        return f"dtype {dtype} can't be compared"
    if tuple(candidate.shape) != tuple(reference.shape):
        empty = "empty, " if 0 in candidate.shape else ""
        return f"{empty}shape is {list(candidate.shape)}, the reference's is {list(reference.shape)}"
    return ""


def _reason(figures: Figures, tolerance: Tolerance, reference: Any, values: tuple[Any, Any]) -> str:
    """The first rule that is broken, or "". Written as `not (figure <= bound)` so that a NaN fails."""
    expected, got = (f"{value:.6g}" for value in values)
    at = list(figures.worst_index)
    if figures.misplaced:
        return f"{figures.misplaced} elements are NaN or Inf in one only, the first at {at}: {got}, expected {expected}"
    if not figures.compared:
        return "the reference has no finite element, so nothing was compared"
    worst = figures.worst_slice
    if dtype_kind(dtype_name(reference)) == "exact":
        if not figures.mismatch <= tolerance.mismatch:
            return (
                f"{figures.mismatch:.3g} of the elements differ, at most {tolerance.mismatch:.3g} may; "
                f"e.g. at {at}: {got}, expected {expected}"
            )
        if worst is not None and not worst.excess <= 1:
            return f"{worst.share:.3g} of the elements in slice {worst} differ, at most 0.5 may"
        return ""
    if not figures.rel_l2 <= tolerance.rel_l2:
        return f"relative L2 is {figures.rel_l2:.3g}, at most {tolerance.rel_l2:.3g} is allowed"
    if not figures.max_rel <= tolerance.max_rel:
        return (
            f"element {at} is {got}, expected {expected}: relative to itself and its row off by "
            f"{figures.max_rel:.3g}, at most {tolerance.max_rel:.3g} is allowed"
        )
    if worst is not None and not worst.excess <= 1:
        return f"slice {worst} is off by {worst.share:.3g} of its size, {worst.excess:.3g} times what is allowed"
    if figures.following is not None and not figures.following >= _FOLLOWS:
        return (
            f"does not follow the reference from row to row: correlation of the steps is {figures.following:.3g}, "
            f"at least {_FOLLOWS} is expected"
        )
    return ""


def _lost_value(reference: Any, candidate: Any, figures: Figures) -> str:
    """Whether a value that is frequent in the reference is mostly something else in the candidate."""
    if not figures.mismatch:
        return ""
    expected, got = (np.asarray(value.cpu() if hasattr(value, "cpu") else value) for value in (reference, candidate))
    values, which, counts = np.unique(expected, return_inverse=True, return_counts=True)
    wrong = np.bincount(which.ravel(), (expected != got).ravel(), len(values))
    share = np.where(counts >= _FAMILIAR, wrong / counts, 0.0)
    lost = int(np.argmax(share))
    if share[lost] <= 0.5:
        return ""
    return f"{share[lost]:.3g} of the elements that are {values[lost]} in the reference differ, at most 0.5 may"


def _likeness(name: str, candidate: Any, figures: Figures, references: Mapping[str, Any], tolerance: Tolerance) -> str:
    """What a wrong output looks like, in brackets, or ""."""
    if figures.zeros:
        return " (all zeros)"
    if figures.constant and math.prod(candidate.shape) > 1:
        return " (one value throughout)"
    for other, value in references.items():
        if other != name and not _difference_in_kind(value, candidate) and _equal(value, candidate, tolerance):
            return f" (it matches the reference's output '{other}')"
    is_square = len(candidate.shape) > 1 and candidate.shape[-1] == candidate.shape[-2]
    if is_square and _equal(references[name], candidate.swapaxes(-1, -2), tolerance):
        return " (it matches with the last two dimensions swapped)"
    if figures.cosine <= -0.999:
        return " (the sign is flipped)"
    if figures.cosine >= 0.999 and not 0.9 < figures.gain < 1.1:
        return f" (about {figures.gain:.3g} times the reference)"
    return ""


def _equal(reference: Any, candidate: Any, tolerance: Tolerance) -> bool:
    figures = measure(reference, candidate, tolerance)
    return not _reason(figures, tolerance, reference, (0, 0))


def _badness(row: OutputParity) -> tuple[bool, float]:
    unmeasured = 0.0 if row.passed else math.inf
    return not row.passed, unmeasured if math.isnan(row.rel_l2) else row.rel_l2


def _of_case(case: str) -> str:
    return f" of case '{case}'" if case else ""


def _cells(row: OutputParity) -> list[str]:
    figures = [f"{value:.2e}" if not math.isnan(value) else "-" for value in (row.rel_l2, row.max_abs, row.max_rel)]
    cosine = f"{row.cosine:.6f}" if not math.isnan(row.cosine) else "-"
    where = "-" if row.worst_index is None else str(list(row.worst_index)).replace(" ", "")
    verdict = "passed" if row.passed else f"FAILED: {row.reason}"
    remarks: list[str] = []
    if row.passed and row.mismatch > 0:
        remarks.append(f"{row.mismatch:.2g} of the elements differ")
    if row.passed and row.nonfinite_reference:
        remarks.append(f"{row.nonfinite_reference} NaN or Inf in both")
    verdict += f" ({', '.join(remarks)})" if remarks else ""
    tensor = f"{row.dtype}[{', '.join(map(str, row.shape))}]"
    return [row.case or "-", row.name, tensor, *figures, cosine, where, verdict]


def _plain(value: object) -> Any:
    if isinstance(value, complex):
        return [_plain(value.real), _plain(value.imag)]
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
