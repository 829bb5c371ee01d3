"""Order statistics and sorted places: PyTorch's values, with ties, infinities and NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from torch2engine.exporter.decompositions.ordering import ORDERING

NAN, INF = math.nan, math.inf
ROWS = {
    "numbers": torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),
    "ties": torch.tensor([[2.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0, -1.0]]),
    "extremes": torch.tensor([[1.0, NAN, 3.0, INF, NAN, -INF], [NAN] * 6, [INF] * 6, [-INF, 2, 2, 2, 0, -INF]]),
    "integers": torch.tensor([[3, -4, 3, 5], [-(2**63), 2**63 - 1, 0, 1]]),
}
BOUNDARIES = torch.tensor([-INF, 1.0, 2.0, 2.0, 3.0, INF])
VALUES = torch.tensor([[1.0, 2.0, 2.5], [NAN, INF, -INF]])


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", ["median", "nanmedian"])
def test_median_is_pytorchs(name: str, rows: torch.Tensor, dim: int) -> None:
    """The lower one of two, NaN where PyTorch gives NaN; at its place it stands."""
    function: Any = getattr(torch, name)
    expected = function(rows, dim, keepdim=True)
    value, place = ORDERING[f"{name}.dim"](rows, dim, True)
    torch.testing.assert_close(value, expected[0], equal_nan=True)
    torch.testing.assert_close(rows.gather(dim, place), value, equal_nan=True)
    torch.testing.assert_close(ORDERING[name](rows), function(rows), equal_nan=True)
    torch.testing.assert_close(ORDERING[f"{name}.dim"](rows, dim)[0], function(rows, dim)[0], equal_nan=True)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dim", [0, 1])
def test_kth_value_counts_nan_as_the_largest(rows: torch.Tensor, dim: int) -> None:
    """Every k, first to last."""
    for k in range(1, rows.shape[dim] + 1):
        value, place = ORDERING["kthvalue"](rows, k, dim)
        torch.testing.assert_close(value, torch.kthvalue(rows, k, dim)[0], equal_nan=True)
        torch.testing.assert_close(rows.gather(dim, place.unsqueeze(dim)).squeeze(dim), value, equal_nan=True)


@pytest.mark.parametrize("rows", [ROWS["ties"], ROWS["integers"], ROWS["numbers"]], ids=["ties", "integers", "numbers"])
def test_mode_is_the_smallest_most_frequent_value(rows: torch.Tensor) -> None:
    """With the last of its places."""
    torch.testing.assert_close(ORDERING["mode"](rows, -1), tuple(torch.mode(rows, -1)))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_equal_elements_keep_their_order(rows: torch.Tensor, descending: bool, dim: int) -> None:
    """NaN counts as the largest, and as equal to another NaN."""
    found = ORDERING["sort.stable"](rows, stable=True, dim=dim, descending=descending)
    expected = torch.sort(rows, stable=True, dim=dim, descending=descending)
    torch.testing.assert_close(found, tuple(expected), equal_nan=True)


@pytest.mark.parametrize("right", [False, True])
def test_search_finds_pytorchs_place(right: bool) -> None:
    """Between equal boundaries, at infinities and for NaN; by rows, by a sorter, as int32, for a number."""
    search = ORDERING["searchsorted.Tensor"]
    expected = torch.searchsorted(BOUNDARIES, VALUES, right=right)
    torch.testing.assert_close(search(BOUNDARIES, VALUES, right=right), expected)
    torch.testing.assert_close(search(BOUNDARIES, VALUES, side="right" if right else "left"), expected)
    rows = BOUNDARIES.repeat(2, 1)
    torch.testing.assert_close(search(rows, VALUES, right=right, out_int32=True), expected.to(torch.int32))
    backwards = torch.arange(5, -1, -1)
    torch.testing.assert_close(search(BOUNDARIES.flip(0), VALUES, right=right, sorter=backwards), expected)
    torch.testing.assert_close(ORDERING["bucketize.Tensor"](VALUES, BOUNDARIES, right=right), expected)
    whole = torch.tensor([0, 1, 2, 2, 3])
    for number in (2, 2.5):
        found = ORDERING["searchsorted.Scalar"](whole, number, right=right)
        torch.testing.assert_close(found, torch.searchsorted(whole, number, right=right))


@pytest.mark.parametrize("invert", [False, True])
def test_membership_is_pytorchs(invert: bool) -> None:
    """NaN stands among nothing."""
    found = ORDERING["isin.Tensor_Tensor"](VALUES, BOUNDARIES, invert=invert)
    torch.testing.assert_close(found, torch.isin(VALUES, BOUNDARIES, invert=invert))


def test_searchsorted_counts_what_is_below_by_default() -> None:
    """An element's own value is not below it, unless "right" is asked for."""
    torch.testing.assert_close(
        ORDERING["searchsorted.Tensor"](BOUNDARIES, VALUES), torch.searchsorted(BOUNDARIES, VALUES)
    )
