"""Integers that differ: near ties are told from wrong choices by what they were chosen from."""

from __future__ import annotations

import numpy as np
import pytest

from torch2engine.onnx_graph.integer_choices import IntegerChoice
from torch2engine.parity.near_ties import near_ties

ARGMAX = IntegerChoice("extreme", ("scores",), axis=1)
FP16 = 1e-2


def scores() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 10, 30))


def nearly_equal() -> np.ndarray:
    """Scores in which two classes are nearly equal at one place."""
    found = scores()
    found[2, 3, 7] = 5.0
    found[2, 8, 7] = 5.001
    return found


def labels(values: np.ndarray) -> np.ndarray:
    return values.argmax(1)


def test_argmax_of_nearly_equal_scores_is_a_tie() -> None:
    """The label that differs where two scores are nearly equal is a tie, and only that one."""
    candidate = labels(nearly_equal())
    candidate[2, 7] = 3
    ties = near_ties(labels(nearly_equal()), candidate, ARGMAX, {"scores": nearly_equal()}, FP16)
    assert np.argwhere(ties).tolist() == [[2, 7]]


@pytest.mark.parametrize("place", [0, 9])
def test_tie_with_the_first_or_the_last_class_is_one(place: int) -> None:
    """Its own score is compared, and not that of a class beside it."""
    values = scores()
    values[1, place, 4] = 5.0
    values[1, 5, 4] = 5.001
    candidate = labels(values)
    candidate[1, 4] = place
    ties = near_ties(labels(values), candidate, ARGMAX, {"scores": values}, FP16)
    assert np.argwhere(ties).tolist() == [[1, 4]]
    reference, candidate = candidate, labels(values)
    assert np.argwhere(near_ties(reference, candidate, ARGMAX, {"scores": values}, FP16)).tolist() == [[1, 4]]


def test_wrong_label_is_no_tie() -> None:
    """A label whose score is far below the best is wrong, and so is one outside of the classes."""
    reference = labels(scores())
    for wrong in (int(scores()[0, :, 0].argmin()), -1, 10):
        candidate = reference.copy()
        candidate[0, 0] = wrong
        assert not near_ties(reference, candidate, ARGMAX, {"scores": scores()}, FP16).any()


@pytest.mark.parametrize("values", [np.zeros((4, 10, 30)), np.full((4, 10, 30), 7.0)], ids=["zeros", "sevens"])
def test_dead_scores_excuse_nothing(values: np.ndarray) -> None:
    """Where all scores are equal, every label would be a tie."""
    reference = labels(scores())
    assert not near_ties(reference, (reference + 1) % 10, ARGMAX, {"scores": values}, FP16).any()


def test_too_many_ties_excuse_nothing() -> None:
    """Scores whose differences all lie within the error say nothing of a tenth of the labels."""
    values = 1 + 0.03 * scores()
    reference = labels(values)
    second = np.argsort(values, axis=1)[:, -2]
    assert not near_ties(reference, second, ARGMAX, {"scores": values}, FP16).any()


def test_places_of_top_k_are_ties_by_their_rank() -> None:
    """Two nearly equal scores may change places among the largest."""
    values = nearly_equal()
    top = np.argsort(-values, axis=1)[:, :3]
    candidate = top.copy()
    candidate[2, :2, 7] = top[2, 1::-1, 7]
    ties = near_ties(top, candidate, ARGMAX, {"scores": values}, FP16)
    assert np.argwhere(ties).tolist() == [[2, 0, 7], [2, 1, 7]]


def test_comparison_of_nearly_equal_operands_is_a_tie() -> None:
    """A threshold that the value nearly meets may fall either way; one that it misses may not."""
    left = scores()
    left[0, 0, 0] = 1e-3
    right = np.zeros(())
    reference = left > right
    candidate = reference.copy()
    candidate[0, 0, :2] = ~candidate[0, 0, :2]
    ties = near_ties(reference, candidate, IntegerChoice("comparison", ("a", "b")), {"a": left, "b": right}, FP16)
    assert ties[0, 0, 0]
    assert ties.sum() == 1 + (abs(left[0, 0, 1]) < 0.04)


def test_rounding_at_a_boundary_is_a_tie() -> None:
    """A value beside the boundary of truncating or of rounding may go either way, by one; no other one may."""
    exact = np.linspace(0.1, 90.1, 31)
    exact[[3, 5, 9]] = 9.999, 20.001, 30.4995
    reference = np.trunc(exact).astype(np.int64)
    candidate = reference.copy()
    candidate[[3, 5, 9]] = 10, 19, 31
    candidate[7] += 2
    candidate[11] += 1
    ties = near_ties(reference, candidate, IntegerChoice("rounding", ("x",)), {"x": exact}, 1e-4)
    assert np.flatnonzero(ties).tolist() == [3, 5, 9]


def test_operands_of_another_form_excuse_nothing() -> None:
    """Scores that don't fit the labels are not theirs."""
    reference = labels(scores())
    assert not near_ties(reference, reference + 1, ARGMAX, {"scores": scores()[:, :, :7]}, FP16).any()
