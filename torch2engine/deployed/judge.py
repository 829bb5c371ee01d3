"""A deployed module and the parity cases → `ParityReport`.

Enters: a deployed module, and cases with the reference's answers. Leaves: one report over all cases. Separate because
lowering, `check` and `deploy` compare in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerances, check_tolerance
from torch2engine.core.errors import ParityError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.module_access import runtime_kind
from torch2engine.deployed.replace_near_ties import NearTies
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["ENGINE_REPEATS", "judge"]

ENGINE_REPEATS = 2
"""How often an engine answers each case again: TensorRT-RTX in TF32 may answer differently from call to call."""

# Repeated answers may differ by a tenth of the tolerance. They may always differ by what the order of float32 sums can
# change.
_REPEAT_SHARE = 0.1
_REPEAT_REL_L2 = 1e-6
_REPEAT_MAX_REL = 1e-5


def judge(
    candidate: DeployedModule[Any],
    parity_cases: Sequence[ParityCase],
    tolerance: Tolerances | None = None,
    notes: Sequence[str] = (),
    repeats: int = 0,
    precision: str | None = None,
) -> ParityReport:
    """Compare the reference's answers with a deployed module's, case by case.

    Args:
        candidate: called with the inputs of the parity cases, on its own device.
        parity_cases: from `make_parity_cases`.
        tolerance: by default `Tolerance.default` of the precision, or more where the reference's own sensitivity is
            larger.
        notes: kept in the report.
        repeats: how often each case runs again at once. If `repeats` is not 0, each case also runs once more after all
            other cases.
        precision: whose tolerance and sensitivity count; by default the candidate's.

    Raises:
        InputError: `tolerance` is no valid `Tolerance`, or names an output that does not exist.
        ParityError: the candidate answers the same case differently, beyond rounding.
    """
    check_tolerance(tolerance)
    judged_as = precision or candidate.precision
    bounds = Bounds.of(tolerance, judged_as, runtime_kind(candidate))
    report = ParityReport((), f"PyTorch vs {candidate.runtime}", bounds.tolerance, tuple(notes))
    ties = NearTies(candidate)
    answers: list[dict[str, torch.Tensor]] = []
    for parity_case in parity_cases:
        answer = _answer(candidate, parity_case)
        for _ in range(repeats):
            _require_repetition(candidate, parity_case, answer, bounds, judged_as)
        report = report.add(_compared(parity_case, answer, bounds, judged_as, ties))
        if repeats:
            answers.append(answer)
    report = _with_deaf_outputs(report, _deaf_outputs(parity_cases))
    for parity_case, answer in zip(parity_cases, answers, strict=False):  # without repeats there are no answers
        _require_repetition(candidate, parity_case, answer, bounds, judged_as)
    return replace(report, advice=_advice(report, parity_cases))


def _advice(report: ParityReport, parity_cases: Sequence[ParityCase]) -> str:
    """Say what to do if the failures are on invented inputs, such as positions of which two are the same."""
    failed = {row.case for row in report.failures}
    guessed = dict.fromkeys(name for case in parity_cases if case.name in failed for name in case.guessed)
    if not guessed:
        return ""
    names = ", ".join(f"'{name}'" for name in guessed)
    return f"pass real inputs as examples=[...], since the values of {names} were made up and may not fit together"


def _compared(
    case: ParityCase, answer: Mapping[str, torch.Tensor], bounds: Bounds, precision: str, near_ties: NearTies
) -> tuple[OutputParity, ...]:
    """Judge the answers to one case."""
    bounds.check_names(case.outputs)
    without = near_ties.without_ties(case, answer, bounds)
    sensitivity = case.sensitivity.get(precision)
    rows = compare(case.outputs, without.answers, bounds, case=case.name, sensitivity=sensitivity)
    return tuple(replace(row, near_ties=without.ties.get(row.name, 0.0)) for row in rows)


def _deaf_outputs(cases: Sequence[ParityCase]) -> set[str]:
    """Find outputs whose first row is the same in all cases, although the inputs' first rows are not."""
    others = [case for case in cases[1:] if not all(map(_same_row, cases[0].inputs, case.inputs))]
    if not others:
        return set()
    first = cases[0].outputs
    return {name for name in first if all(_same_row(first[name], case.outputs[name]) for case in cases[1:])}


def _same_row(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether the first rows of two tensors are equal; those of other sizes are not."""
    rows = [value[:1] if value.ndim else value for value in (left, right)]
    return rows[0].shape == rows[1].shape and torch.equal(rows[0], rows[1])


def _with_deaf_outputs(report: ParityReport, names: set[str]) -> ParityReport:
    """Mark outputs for which passing proves little, because no input changes them."""
    reason = "it is the same for every input"
    rows = [
        replace(row, weakness=row.weakness or reason) if row.passed and row.name in names else row
        for row in report.rows
    ]
    return replace(report, rows=tuple(rows))


def _answer(candidate: DeployedModule[Any], parity_case: ParityCase) -> dict[str, torch.Tensor]:
    return candidate.infer([leaf.to(candidate.device, copy=True) for leaf in parity_case.inputs])


def _require_repetition(
    candidate: DeployedModule[Any],
    case: ParityCase,
    first: Mapping[str, torch.Tensor],
    bounds: Bounds,
    precision: str,
) -> None:
    """Run a case again, and refuse a candidate whose answer differs from its first one by more than rounding.

    Raises:
        ParityError: with the figures.
    """
    again = _answer(candidate, case)
    if all(_is_same(first[name], again[name]) for name in first):
        return
    allowed = bounds.tightened(_REPEAT_SHARE, rel_l2=_REPEAT_REL_L2, max_rel=_REPEAT_MAX_REL)
    title = f"{candidate.runtime} vs itself"
    rows = compare(first, again, allowed, case=case.name, sensitivity=case.sensitivity.get(precision))
    report = ParityReport(rows, title, allowed.tolerance)
    if report.passed:
        return
    worst = max(report.rows, key=lambda row: row.rel_l2)
    raise ParityError(
        f"parity, {title}",
        got=f"an engine that does not repeat itself: answers to case '{case.name}' differ by rel_l2 {worst.rel_l2:.1e}",
        allowed=f"equal answers in every call, or a difference of at most {worst.allowed:.1e}",
        fix="deploy with precision='fp32'"
        if PRECISION_TYPES[candidate.precision].uses_tf32
        else "build with another precision, or with another version of TensorRT",
        report=report,
    )


def _is_same(first: torch.Tensor, again: torch.Tensor) -> bool:
    """Tell whether two answers are equal, where NaN equals NaN: other checks refuse an engine for its NaN."""
    return bool(((first == again) | ((first != first) & (again != again))).all())
