"""Outputs of a reference and of a candidate + `Tolerance` → verdicts.

Enters: outputs by name, as numpy arrays or torch tensors on any device. Leaves: one verdict per output, with its
figures and, for a failure, its reason. Separate, and without torch, because the same rules hold for every candidate:
ONNX Runtime, an engine, or the user's own. An output that was not compared has not passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from torch2engine.core.config import Tolerance
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.parity.figures import Figures, dtype_kind, dtype_name, element, measure
from torch2engine.parity.parity_report import OutputParity
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["compare"]

_FOLLOWS = 0.3  # the least correlation of the steps from row to row; a stale or constant output has no correlation
_FAMILIAR = 64  # an integer value this often in the reference must not vanish from the candidate


def compare(
    reference: Mapping[str, Any],
    candidate: Mapping[str, Any],
    tolerance: Tolerance | Bounds,
    *,
    case: str = "",
    sensitivity: Mapping[str, Any] | None = None,
) -> tuple[OutputParity, ...]:
    """Judge every output of one call.

    Args:
        reference, candidate: outputs by name: numpy arrays or torch tensors, of any shape, dtype and device. They are
            only read. Those on a GPU are copied block by block.
        tolerance: the bounds; its docstring is the rule. `Bounds` may allow for the sensitivity as well.
        case: the call's name, e.g. "max".
        sensitivity: how far rounding alone moves each element of the reference, by output, as in
            `ParityCase.sensitivity`. The bound of every part of an output then follows from its own movement.

    Returns:
        one row per output of the reference, in its order, then one per output that only the candidate has.
    """
    bounds = tolerance if isinstance(tolerance, Bounds) else Bounds.of(tolerance, DEFAULT_PRECISION)
    movements = sensitivity or {}
    rows = [
        _judge_output(name, reference, candidate, bounds.of_output(name), movements.get(name)) for name in reference
    ]
    for name, value in candidate.items():
        if name not in reference:
            rows.append(_row(name, value, "the reference has no such output"))
    return tuple(replace(row, case=case) for row in rows)


def _row(name: str, value: Any, reason: str) -> OutputParity:
    return OutputParity(name, "", not reason, reason, shape=tuple(getattr(value, "shape", ())), dtype=dtype_name(value))


def _judge_output(
    name: str, references: Mapping[str, Any], candidates: Mapping[str, Any], bounds: Bounds, movement: Any
) -> OutputParity:
    reference = references[name]
    if name not in candidates:
        return _row(name, reference, "missing from the candidate")
    candidate = candidates[name]
    reason = _difference_in_kind(reference, candidate)
    if reason or 0 in reference.shape:
        return replace(_row(name, reference, reason), weakness="" if reason else "it has no elements")
    figures = measure(reference, candidate, bounds, movement)
    reference_value = element(reference, figures.worst_index)
    candidate_value = element(candidate, figures.worst_index)
    is_exact = _is_exact(reference)
    reason = _broken_rule(figures, bounds, is_exact, reference_value, candidate_value)
    if not reason and is_exact:
        reason = _lost_value(reference, candidate, figures)
    if reason:
        reason += _resemblance(name, candidate, figures, references, bounds)
    return replace(
        _row(name, reference, reason),
        max_abs=figures.max_abs,
        max_rel=figures.max_rel,
        rel_l2=figures.rel_l2,
        sensitivity=figures.sensitivity,
        allowed=math.nan if is_exact else figures.allowed,
        weakness="" if reason else figures.weakness,
        cosine=figures.cosine,
        mismatch=figures.mismatch,
        worst_index=figures.worst_index,
        nonfinite_reference=figures.nonfinite_reference,
        nonfinite_candidate=figures.nonfinite_candidate,
        reference_value=reference_value,
        candidate_value=candidate_value,
        error_decades=figures.error_decades,
    )


def _difference_in_kind(reference: Any, candidate: Any) -> str:
    """Say why two outputs can't be compared element by element; "" if they can."""
    for who, value in (("the reference", reference), ("the candidate", candidate)):
        if not (hasattr(value, "dtype") and hasattr(value, "shape")):
            return f"{who} is a {type(value).__name__}, neither a tensor nor an array"
        layout = str(getattr(value, "layout", "torch.strided")).removeprefix("torch.")
        if layout != "strided":
            return f"{who} is a {layout} tensor, only dense ones can be compared"
    expected = dtype_name(reference)
    dtype = dtype_name(candidate)
    if dtype != expected:
        return f"dtype is {dtype}, the reference's is {expected}"
    if not dtype_kind(dtype):
        return f"dtype {dtype} can't be compared"
    if tuple(candidate.shape) != tuple(reference.shape):
        empty = "empty, " if 0 in candidate.shape else ""
        return f"{empty}shape is {list(candidate.shape)}, the reference's is {list(reference.shape)}"
    return ""


def _is_exact(value: Any) -> bool:
    return dtype_kind(dtype_name(value)) == "exact"


def _broken_rule(figures: Figures, bounds: Bounds, is_exact: bool, reference_value: Any, candidate_value: Any) -> str:
    """Name the first rule that the candidate breaks; "" if it breaks none.

    Rules are written as `not (figure <= bound)`, so that a NaN fails.

    Args:
        figures: of the output.
        bounds: of the output.
        is_exact: whether the output is of integers or bools.
        reference_value, candidate_value: the elements at the worst index.
    """
    expected = f"{reference_value:.6g}"
    got = f"{candidate_value:.6g}"
    at = list(figures.worst_index)
    if figures.misplaced:
        return f"{figures.misplaced} elements are NaN or Inf in one only, the first at {at}: {got}, expected {expected}"
    if not figures.compared:
        return ""  # equal infinities and NaNs pass; the row says that they prove little
    worst = figures.worst_part
    if is_exact:
        if not figures.mismatch <= bounds.mismatch:
            return (
                f"{figures.mismatch:.3g} of the elements differ, at most {bounds.mismatch:.3g} may; "
                f"e.g. at {at}: {got}, expected {expected}"
            )
        if worst is not None and not worst.excess <= 1:
            return f"{worst.share:.3g} of the elements in {worst.place} differ, at most 0.5 may"
        return ""
    if not figures.rel_l2 <= figures.allowed:
        return f"relative L2 is {figures.rel_l2:.3g}, at most {figures.allowed:.3g} is allowed"
    if not figures.max_rel <= bounds.max_rel:
        return (
            f"element {at} is {got}, expected {expected}: relative to itself and its surroundings off by "
            f"{figures.max_rel:.3g}, at most {bounds.max_rel:.3g} is allowed"
        )
    if worst is not None and not worst.excess <= 1:
        return f"{worst.place} is off by {worst.share:.3g} of its size, {worst.excess:.3g} times what is allowed"
    if figures.following is not None and not figures.following >= _FOLLOWS:
        return (
            f"does not follow the reference from row to row: correlation of the steps is {figures.following:.3g}, "
            f"at least {_FOLLOWS} is expected"
        )
    return ""


def _lost_value(reference: Any, candidate: Any, figures: Figures) -> str:
    """Name a value that is frequent in the reference and mostly replaced in the candidate; "" if there is none."""
    if not figures.mismatch:
        return ""
    expected = _on_host(reference)
    got = _on_host(candidate)
    values, which, counts = np.unique(expected, return_inverse=True, return_counts=True)
    wrong = np.bincount(which.ravel(), (expected != got).ravel(), len(values))
    share = np.where(counts >= _FAMILIAR, wrong / counts, 0.0)
    lost = int(np.argmax(share))
    if share[lost] <= 0.5:
        return ""
    return f"{share[lost]:.3g} of the elements that are {values[lost]} in the reference differ, at most 0.5 may"


def _on_host(value: Any) -> Any:
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)


def _resemblance(name: str, candidate: Any, figures: Figures, references: Mapping[str, Any], bounds: Bounds) -> str:
    """Describe in brackets how a wrong output looks; "" if nothing is striking."""
    if figures.zeros:
        return " (all zeros)"
    if figures.constant and math.prod(candidate.shape) > 1:
        return " (one value throughout)"
    for other, value in references.items():
        if other != name and not _difference_in_kind(value, candidate) and _equal(value, candidate, bounds):
            return f" (it matches the reference's output '{other}')"
    is_square = len(candidate.shape) > 1 and candidate.shape[-1] == candidate.shape[-2]
    if is_square and _equal(references[name], candidate.swapaxes(-1, -2), bounds):
        return " (it matches with the last two dimensions swapped)"
    if figures.cosine <= -0.999:
        return " (the sign is flipped)"
    if figures.cosine >= 0.999 and not 0.9 < figures.gain < 1.1:
        return f" (about {figures.gain:.3g} times the reference)"
    return ""


def _equal(reference: Any, candidate: Any, bounds: Bounds) -> bool:
    figures = measure(reference, candidate, bounds)
    return not _broken_rule(figures, bounds, _is_exact(reference), 0, 0)
