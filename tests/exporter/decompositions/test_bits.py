"""Bitwise operators: PyTorch's results for every width, at both ends of each type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch2engine.exporter.decompositions.bits import BITS

NUMBERS = torch.tensor([0, 1, -1, 5, -7, 2**31 - 1, -(2**31), 2**62 + 3, 2**63 - 1, -(2**63), 123456789])
DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor"])
def test_two_numbers_are_combined_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    """Tensors, and a number on either side."""
    function: Callable[..., Any] = getattr(torch, name)
    x = NUMBERS.to(dtype)
    a, b = (part.flatten() for part in torch.meshgrid(x, x, indexing="ij"))
    torch.testing.assert_close(BITS[f"{name}.Tensor"](a, b), function(a, b))
    torch.testing.assert_close(BITS[f"{name}.Scalar"](a, 6), function(a, 6))
    torch.testing.assert_close(BITS[f"{name}.Scalar_Tensor"](6, a), function(6, a))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_is_turned(dtype: torch.dtype) -> None:
    """Signed or not."""
    torch.testing.assert_close(BITS["bitwise_not"](NUMBERS.to(dtype)), ~NUMBERS.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("places", [0, 1, 5, 30, 31, 62, 63])
def test_shifts_are_pytorchs(dtype: torch.dtype, places: int) -> None:
    """By a number and by a tensor; the sign stays on the way right, lost bits are lost."""
    x = NUMBERS.to(dtype)
    left, right = BITS["bitwise_left_shift.Tensor"], BITS["bitwise_right_shift.Tensor"]
    torch.testing.assert_close(left(x, places), x << places)
    torch.testing.assert_close(right(x, places), x >> places)
    each = torch.full_like(x, places)
    torch.testing.assert_close(left(x, each), x << each)
    torch.testing.assert_close(right(x, each), x >> each)


def test_bools_are_left_to_logic() -> None:
    """torch.onnx writes And, Or, Xor and Not for them."""
    x = torch.tensor([True, False])
    assert BITS["bitwise_and.Tensor"](x, x) is NotImplemented
    assert BITS["bitwise_not"](x) is NotImplemented
