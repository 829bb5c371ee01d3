"""Verdicts on outputs, as data: what was compared, and whether the candidate answers like the reference.

Enters: rows of figures and reasons. Leaves: a table, JSON, or a `ParityError`. Separate from `compare` because deployed
modules hold reports, and a comparison does not format text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError, ParityError
from torch2engine.core.package import public

__all__ = ["ERROR_DECADES", "OutputParity", "ParityReport"]

ERROR_DECADES = tuple(range(-9, 1))  # powers of ten; `OutputParity.error_decades` counts below, between and above them

Number: TypeAlias = "bool | int | float | complex"

_MORE_PROOF = "trained weights, or inputs of your own with examples=[...], prove more"
_NAMED = 4  # failures in an error's first line; the table below it has them all


@dataclass(frozen=True)
class OutputParity:
    """The verdict on one output of one case.

    Args:
        name, case: the output's name, and the case's, e.g. "max".
        passed: the verdict.
        reason: why it failed; "" if it passed.
        weakness: why the verdict proves little although it passed, e.g. "it is all zeros"; "" if it proves something.
        shape, dtype: the reference's (the candidate's for an output that the reference does not have).
        max_abs: largest |candidate − reference|.
        max_rel: largest |candidate − reference| in units of |reference| plus its row's root mean square, or plus a unit
            that follows from its own sensitivity.
        rel_l2: ‖candidate − reference‖₂ / ‖reference‖₂.
        sensitivity: how far the reference's own answer moves when inputs and weights move by half a unit in the last
            place, relative to its size.
        allowed: the largest rel_l2 that passes: that of the tolerance, or the one that the sensitivity allows.
        cosine: cosine of the angle between the two, flattened.
        mismatch: share of the elements of an integer or bool output that differ; 0 for other dtypes.
        near_ties: share of further elements that differ only because of a near tie.
        worst_index: where max_rel is, or the first element that is NaN or Inf in one only; None if not measured.
        nonfinite_reference, nonfinite_candidate: counts of NaN and ±Inf.
        reference_value, candidate_value: the elements at worst_index.
        error_decades: numbers of elements by their error, in units of the reference's root mean square. The first
            number is for errors below the first of `ERROR_DECADES`, the last for errors beyond its last. () for
            integers and where nothing was measured.

    Figures that could not be measured are NaN. Norms leave out mask values and elements that are not finite.
    """

    name: str
    case: str
    passed: bool
    reason: str = ""
    weakness: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    max_abs: float = math.nan
    max_rel: float = math.nan
    rel_l2: float = math.nan
    sensitivity: float = math.nan
    allowed: float = math.nan
    cosine: float = math.nan
    mismatch: float = math.nan
    near_ties: float = 0.0
    worst_index: tuple[int, ...] | None = None
    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    reference_value: Number | None = None
    candidate_value: Number | None = None
    error_decades: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not finite becomes None, a complex one a pair."""
        data = {key: _plain(value) for key, value in vars(self).items()}
        data["shape"] = list(self.shape)
        data["worst_index"] = None if self.worst_index is None else list(self.worst_index)
        data["error_decades"] = list(self.error_decades)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputParity:
        """The inverse of `to_json`; infinite figures come back as NaN."""
        row = dict(data)
        for column in fields(cls):
            if column.type in ("float", float) and row[column.name] is None:
                row[column.name] = math.nan
        row["shape"] = tuple(row["shape"])
        row["worst_index"] = None if row["worst_index"] is None else tuple(row["worst_index"])
        row["error_decades"] = tuple(row.get("error_decades", ()))  # older reports have none
        for name in ("reference_value", "candidate_value"):
            row[name] = complex(*row[name]) if isinstance(row[name], list) else row[name]
        return cls(**row)


@public
@dataclass(frozen=True)
class ParityReport:
    """Verdicts on every output of every case that was compared.

    Args:
        rows: one per output and case.
        subject: the reference and the candidate, e.g. "PyTorch vs TensorRT".
        tolerance: the bounds.
        notes: remarks for the reader, one sentence each.
        advice: what to do first if it failed, as an imperative; "" if only a wider tolerance helps.

    Printed, it is a table in plain text. `passed` is a bool; `verdict` also says whether passing proves something.

    >>> report = module.report.parity[0]
    >>> report.subject, report.passed, [row.case for row in report.rows]
    ('PyTorch vs ONNX Runtime', True, ['min', 'opt', 'max', 'random'])
    """

    rows: tuple[OutputParity, ...]
    subject: str
    tolerance: Tolerance
    notes: tuple[str, ...] = ()
    advice: str = ""

    @property
    def failures(self) -> tuple[OutputParity, ...]:
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it passed."""
        return bool(self.rows) and not self.failures

    @property
    def verdict(self) -> Literal["passed", "weak", "failed"]:
        """Whether the candidate answers like the reference.

        "weak" means that it passed, but for some output no case proves much, e.g. because all answers are zeros.
        """
        if not self.passed:
            return "failed"
        return "weak" if self.weaknesses else "passed"

    @property
    def weaknesses(self) -> dict[str, str]:
        """Output name -> why passing proves little. Outputs for which some case proves more are left out."""
        proved = {row.name for row in self.rows if row.passed and not row.weakness}
        return {row.name: row.weakness for row in self.rows if row.weakness and row.name not in proved}

    @property
    def worst(self) -> OutputParity | None:
        """The row with the largest rel_l2, failures before passes; None without rows."""
        return max(self.rows, key=_badness, default=None)

    def add(self, rows: Iterable[OutputParity], *, notes: Iterable[str] = ()) -> ParityReport:
        """Give the report with the rows of one more case."""
        return replace(self, rows=(*self.rows, *rows), notes=(*self.notes, *notes))

    def merge(self, other: ParityReport) -> ParityReport:
        """Give the report with all rows and notes of another one.

        Raises:
            InputError: the other report has another tolerance.
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
        __tracebackhide__ = True  # pytest then shows the caller's line
        if self.passed:
            return self
        failed = [f"output '{row.name}'{_of_case(row.case)}: {row.reason}" for row in self.failures]
        more = f" | and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        why = (" | ".join(failed[:_NAMED]) or "no comparison") + more
        fix = (
            "if the difference is meant, pass a wider tolerance=Tolerance(...)"
            if failed
            else "compare one case at least"
        )
        raise ParityError(
            f"parity, {self.subject}",
            report=self,
            got=why,
            allowed="answers within the tolerance",
            fix="; ".join(filter(None, (self.advice, fix))),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "subject": self.subject,
            "passed": self.passed,
            "verdict": self.verdict,
            "tolerance": asdict(self.tolerance),
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ParityReport:
        """The inverse of `to_json`, without the advice."""
        return cls(
            tuple(OutputParity.from_json(row) for row in data["rows"]),
            str(data["subject"]),
            Tolerance(**data["tolerance"]),
            tuple(map(str, data["notes"])),
        )

    def __str__(self) -> str:
        head = "case output tensor rel_l2 allowed sensitivity max_abs max_rel cosine worst verdict".replace(
            "_", "-"
        ).split()
        cells = [head, *map(_cells, self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
        bounds = ", ".join(f"{name} {value:g}" for name, value in asdict(self.tolerance).items() if value is not None)
        if self.rows:
            share = f"{len(self.rows) - len(self.failures)} of {len(self.rows)} outputs passed"
        else:
            share = "nothing was compared"
        verdict = "FAILED" if self.verdict == "failed" else self.verdict
        title = f"{self.subject}: {verdict}, {share} (allowed: {bounds})"
        warnings = [
            f"warning: parity proves little for output '{name}': {reason}; {_MORE_PROOF}"
            for name, reason in self.weaknesses.items()
        ]
        remarks = [*warnings, *(f"note: {note}" for note in self.notes)]
        return "\n".join([title, *(line.rstrip() for line in lines), *remarks])


def _badness(row: OutputParity) -> tuple[bool, float]:
    """Order rows: failures after passes, then by rel_l2; a failure without it is the worst."""
    if math.isnan(row.rel_l2):
        return not row.passed, 0.0 if row.passed else math.inf
    return not row.passed, row.rel_l2


def _of_case(case: str) -> str:
    return f" of case '{case}'" if case else ""


def _cells(row: OutputParity) -> list[str]:
    """Give a row of the printed table."""
    values = (row.rel_l2, row.allowed, row.sensitivity, row.max_abs, row.max_rel)
    figures = [f"{value:.2e}" if not math.isnan(value) else "-" for value in values]
    cosine = f"{row.cosine:.6f}" if not math.isnan(row.cosine) else "-"
    where = "-" if row.worst_index is None else str(list(row.worst_index)).replace(" ", "")
    verdict = "passed" if row.passed else f"FAILED: {row.reason}"
    verdict = f"weak: {row.weakness}" if row.passed and row.weakness else verdict
    remarks: list[str] = []
    if row.passed and row.mismatch > 0:
        remarks.append(f"{row.mismatch:.2g} of the elements differ")
    if row.near_ties > 0:
        remarks.append(f"{row.near_ties:.2g} are near ties")
    if row.passed and row.nonfinite_reference:
        remarks.append(f"{row.nonfinite_reference} NaN or Inf in both")
    verdict += f" ({', '.join(remarks)})" if remarks else ""
    tensor = f"{row.dtype}[{', '.join(map(str, row.shape))}]"
    return [row.case or "-", row.name, tensor, *figures, cosine, where, verdict]


def _plain(value: Any) -> Any:
    """Make a number fit for JSON: one that is not finite becomes None, a complex one a pair."""
    if isinstance(value, complex):
        return [_plain(value.real), _plain(value.imag)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
