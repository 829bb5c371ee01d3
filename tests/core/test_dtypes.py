"""Dtypes by name: which casts lose nothing, against what really happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from torch2engine.core.dtypes import lossless_cast

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
OTHERS = ("bool", "uint16", "float8_e4m3fn")
_WORD = {"float16": torch.int16, "bfloat16": torch.int16, "float32": torch.int32, "float64": torch.int64}


def hard_values(name: str) -> torch.Tensor:
    """Every value of a dtype of 16 bits or less; for wider ones every power of two, its neighbours and both ends."""
    dtype = getattr(torch, name)
    if name == "bool":
        return torch.tensor([False, True])
    if name in FLOATS:
        word = _WORD[name]
        bits = torch.iinfo(word).bits
        if bits == 16:
            patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
        else:
            # Bit patterns whose mantissa is empty, full, or has its first or last bit set, for every exponent.
            mantissa = {32: 23, 64: 52}[bits]
            exponents = torch.arange(2 ** (bits - 1 - mantissa)) << mantissa
            patterns = torch.cat([exponents + low for low in (0, 1, 2 ** (mantissa - 1), 2**mantissa - 1)]).to(word)
        values = patterns.view(dtype)
        return values[~values.isnan()]
    if name.startswith("float8"):
        values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
        return values[~values.float().isnan()]
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    powers = {sign * 2**k + step for k in range(63) for sign in (1, -1) for step in (-1, 0, 1)}
    inside = sorted(value for value in {low, high, *powers} if low <= value <= high)
    return torch.tensor(inside, dtype=torch.int64).to(dtype)


def exact(values: torch.Tensor) -> list[Any]:
    """The values as Python numbers, which compare exactly across int and float."""
    return (values.double() if values.is_floating_point() else values).tolist()


def survives(source: str, target: str) -> bool:
    """Cast hard values in PyTorch and compare what came out with what went in."""
    values = hard_values(source)
    return exact(values.to(getattr(torch, target))) == exact(values)


@pytest.mark.parametrize("target", [*FLOATS, *INTEGERS, *OTHERS])
@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, *OTHERS])
def test_lossless_cast_never_loses_a_value(source: str, target: str) -> None:
    """A cast that is called lossless keeps every value; among floats and among integers the reverse holds too."""
    truth = survives(source, target)
    if lossless_cast(source, target):
        assert truth
    elif {source, target} <= set(FLOATS) or {source, target} <= set(INTEGERS):
        assert not truth


def test_lossless_cast_agrees_with_numpy() -> None:
    """numpy's safe casts within floats and within integers are the same set."""
    for family in (["float16", "float32", "float64"], list(INTEGERS)):
        for source in family:
            for target in family:
                assert lossless_cast(source, target) == np.can_cast(source, target, "safe"), (source, target)


def test_lossless_cast_never_changes_the_kind() -> None:
    """bool, integers and floats are not mixed, not even where every value would survive; unknown dtypes only match."""
    for source, target in [("int8", "float32"), ("bool", "uint8"), ("float16", "complex64"), ("uint16", "int32")]:
        assert not lossless_cast(source, target)
    assert lossless_cast("float8_e4m3fn", "float8_e4m3fn")
