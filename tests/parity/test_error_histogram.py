"""How many elements are how far off, by powers of ten, for the reader of a report."""

from __future__ import annotations

import numpy as np
import pytest

from torch2engine.core.config import Tolerance
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ERROR_DECADES, OutputParity

WIDE = Tolerance(rel_l2=10.0, max_rel=1e9, abs=1e-9, mismatch=1.0)


def row(reference: np.ndarray, candidate: np.ndarray) -> OutputParity:
    """The only row of a comparison."""
    return compare({"y": reference}, {"y": candidate}, WIDE)[0]


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9], ids=["ones", "tiny", "huge"])
def test_elements_are_counted_by_the_size_of_their_error(scale: float) -> None:
    """In units of the output's root mean square; what is equal and what is wholly wrong have the two ends."""
    reference = np.where(np.arange(4000) % 2, 1.0, -1.0).reshape(4, 1000)  # its root mean square is 1
    candidate = reference.copy()
    candidate[1, :300] += 3e-8
    candidate[2, :20] -= 3e-3
    candidate[3, 7] += 5.0
    counts = dict(zip(("below", *ERROR_DECADES), row(reference * scale, candidate * scale).error_decades, strict=True))
    assert {decade: count for decade, count in counts.items() if count} == {"below": 3679, -8: 300, -3: 20, 0: 1}


def test_counts_add_up_to_the_elements_that_are_finite() -> None:
    """Blocks of a large output add up, and elements that are not finite have no error."""
    reference = np.random.default_rng(0).standard_normal((3, 500_000)).astype(np.float32)
    candidate = reference + np.float32(1e-5) * reference
    reference[0, :5] = candidate[0, :5] = np.nan
    assert sum(row(reference, candidate).error_decades) == reference.size - 5


def test_one_element_is_its_own_unit() -> None:
    """A scalar's error is relative to itself."""
    counts = dict(zip(("below", *ERROR_DECADES), row(np.array([2.0]), np.array([2.15])).error_decades, strict=True))
    assert counts[-2] == 1


def test_integers_and_zeros_have_no_such_counts() -> None:
    """There is no unit for their errors."""
    assert row(np.arange(5), np.arange(5)).error_decades == ()
    assert row(np.zeros(5, np.float32), np.zeros(5, np.float32)).error_decades == ()


def test_counts_come_back_from_json() -> None:
    """Also from reports that were saved before there were any."""
    found = row(np.ones(3, np.float32), np.full(3, 1.5, np.float32))
    data = found.to_json()
    assert OutputParity.from_json(data) == found
    del data["error_decades"]
    assert OutputParity.from_json(data).error_decades == ()
