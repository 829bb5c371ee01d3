"""When a whole call is captured, and when a replay counts as right: what needs no GPU to be decided."""

from __future__ import annotations

import pytest
import torch

import torch2engine as t2e
from torch2engine.deployed.whole_graph import WholeGraphs, _agree, _History

DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("microseconds", "megabytes", "pays"),
    [(500, 1, True), (30, 1, False), (500, 400, True), (500, 600, False)],
    ids=["many launches", "few launches", "large inputs", "larger inputs"],
)
def test_copies_are_weighed_against_launches(microseconds: float, megabytes: int, pays: bool) -> None:
    """ "auto" captures only where a replay and its copies take less time than the launches did."""
    x = torch.empty(megabytes * 1_000_000, dtype=torch.uint8, device="meta")
    y = torch.empty(8, device="meta")
    history = _History(calls=8, least_seconds=microseconds * 1e-6)
    assert WholeGraphs(DEVICE, t2e.RuntimeConfig(), [])._pays(history, [x], [y]) is pays
    assert WholeGraphs(DEVICE, t2e.RuntimeConfig(cuda_graphs=True), [])._pays(history, [x], [y])


NAN = float("nan")
VALUES = torch.tensor([[1.0, -2.0], [NAN, float("inf")]])


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros_like(VALUES),
        VALUES + 0.1,
        VALUES.double(),
        VALUES[:1],
        VALUES.nan_to_num(),
        torch.full_like(VALUES, NAN),
    ],
    ids=["zeros", "other values", "dtype", "shape", "finite", "NaN"],
)
def test_replay_that_gives_something_else_is_no_proof(other: torch.Tensor) -> None:
    """Shapes, dtypes, values, and where a value is not finite."""
    assert not _agree(other, VALUES)


def test_replay_may_add_in_another_order() -> None:
    """Rounding is no difference, for real and complex numbers of any width; integers are exact."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        values = torch.randn(5, 7).to(dtype)
        assert _agree(values * (1 + 1e-3), values)
        assert _agree(values, values.clone())
    assert _agree(VALUES, VALUES.clone())
    assert _agree(torch.empty(0, 3), torch.empty(0, 3))
    numbers = torch.arange(1000, 1005)
    assert _agree(numbers, numbers.clone())
    assert not _agree(numbers + 1, numbers)
