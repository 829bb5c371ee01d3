"""Integers that differ → which of them were chosen between nearly equal scores.

Enters: an integer output of the reference and of the candidate, and the scores behind it. Leaves: a mask. Separate
because an argmax of nearly equal scores may have either result in every precision, which is no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torch2engine.onnx_graph.integer_choices import IntegerChoice

__all__ = ["near_ties"]

_MARGIN = 4.0  # times rel_l2 of the scores' size: the error of a difference of two scores, with room for outliers
_ALIVE = 0.5  # a margin is small only beside scores that vary by more than this much of it
_MOST = 0.1  # share of an output that may be near ties; above it, the scores prove nothing
_FEW = 8  # elements: too few for a share

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def near_ties(
    reference: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    choice: IntegerChoice,
    operands: Mapping[str, Floats],
    rel_l2: float,
) -> Bools:
    """Tell which elements differ only because their choice was a near tie.

    Args:
        reference, candidate: integers or bools of one shape.
        choice: how they were chosen.
        operands: the floating values that the choice was made from, by name.
        rel_l2: the error that these may have.

    Returns:
        a mask in the shape of the outputs: True where they differ within the margin. Nothing is True where the outputs
        do not fit the operands, or where too much would be a tie.
    """
    nothing = np.zeros(reference.shape, np.bool_)
    values = [operands[name] for name in choice.operands]
    if choice.kind == "extreme":
        close = _close_extremes(reference, candidate, values[0], choice.axis, rel_l2)
    elif choice.kind == "comparison":
        close = _close_comparisons(values[0], values[1], rel_l2, reference.shape)
    else:
        close = _close_roundings(reference, candidate, values[0], rel_l2)
    if close is None:
        return nothing
    ties = (reference != candidate) & close
    count = int(ties.sum())
    return ties if count <= max(_FEW, _MOST * ties.size) else nothing


def _size(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0


def _close_extremes(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], scores: Floats, axis: int, rel_l2: float
) -> Bools | None:
    if scores.ndim == 0 or not scores.size:
        return None
    axis %= scores.ndim
    places, rest = divmod(reference.size, scores.size // scores.shape[axis])
    if rest or not places:
        return None
    shape = (*scores.shape[:axis], places, *scores.shape[axis + 1 :])
    right = reference.reshape(shape).astype(np.int64)
    wrong = candidate.reshape(shape).astype(np.int64)
    inside = (wrong >= 0) & (wrong < scores.shape[axis]) & (right >= 0) & (right < scores.shape[axis])
    limit = scores.shape[axis] - 1
    margin = np.abs(
        np.take_along_axis(scores, np.clip(right, 0, limit), axis)
        - np.take_along_axis(scores, np.clip(wrong, 0, limit), axis)
    )
    allowed = _MARGIN * rel_l2 * _size(scores)
    is_alive = _ALIVE * allowed < np.std(scores, axis=axis, keepdims=True)
    return np.asarray(inside & is_alive & (margin <= allowed)).reshape(reference.shape)


def _close_comparisons(left: Floats, right: Floats, rel_l2: float, shape: tuple[int, ...]) -> Bools | None:
    margin = np.abs(left - right)
    if margin.size != int(np.prod(shape)):
        return None
    allowed = _MARGIN * rel_l2 * max(_size(left), _size(right))
    is_alive = _ALIVE * allowed < float(np.std(margin))
    return np.asarray((margin <= allowed) & is_alive).reshape(shape)


def _close_roundings(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], exact: Floats, rel_l2: float
) -> Bools | None:
    if exact.size != reference.size:
        return None
    right = reference.astype(np.float64)
    wrong = candidate.astype(np.float64)
    exact = exact.reshape(reference.shape)
    boundary = np.minimum.reduce([np.abs(exact - right), np.abs(exact - wrong), np.abs(exact - (right + wrong) / 2)])
    return np.asarray((np.abs(right - wrong) == 1) & (boundary <= _MARGIN * rel_l2 * _size(exact)))
