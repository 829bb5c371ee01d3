"""Running maxima, minima and products: PyTorch's values and places, with ties, infinities and NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch2engine.exporter.decompositions.running import RUNNING

ROWS = {
    "numbers": torch.randn(3, 7, generator=torch.Generator().manual_seed(0)),
    "ties": torch.tensor([[2.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0, -1.0]]),
    "extremes": torch.tensor([[1.0, math.nan, 3.0, math.inf], [-math.inf, -math.inf, 2.0, -math.inf]]),
    "integers": torch.tensor([[3, -4, 3, 5], [-(2**63), 2**63 - 1, 0, 1]]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", ["cummax", "cummin", "cumprod"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_running_values_are_pytorchs(name: str, rows: torch.Tensor, dim: int) -> None:
    """Each value, and the last place of a tie."""
    function: Callable[..., Any] = getattr(torch, name)
    torch.testing.assert_close(RUNNING[name](rows, dim), _plain(function(rows, dim)), equal_nan=True)


@pytest.mark.parametrize("name", ["cummax", "cummin", "cumprod"])
def test_one_number_is_its_own_running_value(name: str) -> None:
    """A tensor without dimensions has dimension 0."""
    x = torch.tensor(3.0)
    torch.testing.assert_close(RUNNING[name](x, 0), _plain(getattr(torch, name)(x, 0)))


def test_product_has_the_requested_dtype() -> None:
    """dtype is of the factors, too."""
    x = torch.tensor([1.5, 2.0])
    found = RUNNING["cumprod"](x, 0, dtype=torch.int64)
    torch.testing.assert_close(found, torch.cumprod(x, 0, dtype=torch.int64))


def _plain(result: Any) -> Any:
    """PyTorch's named tuple as a tuple."""
    return tuple(result) if isinstance(result, tuple) else result
