"""Operators of bools and bytes: PyTorch's values in its types, and an ONNX graph that ONNX Runtime takes."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import Function, answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.exporter.decompositions.small_types import SMALL_TYPES
from torch2engine.exporter.decompositions.sorting import SORTING

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.stack([torch.randperm(9, generator=GENERATOR) for _ in range(3)]).to(torch.uint8)
BOOLS = torch.tensor([[True, False], [False, True]])


@pytest.mark.parametrize("x", [BYTES, BOOLS], ids=["bytes", "bools"])
def test_order_of_small_types_is_pytorchs(x: torch.Tensor) -> None:
    """Values and places; other types are left to torch.onnx."""
    for descending in (False, True):
        torch.testing.assert_close(SORTING["sort"](x, 1, descending), tuple(torch.sort(x, 1, descending)))
    for name in ("max", "min"):
        torch.testing.assert_close(SMALL_TYPES[f"{name}.dim"](x, 1, True), tuple(getattr(torch, name)(x, 1, True)))
        assert SMALL_TYPES[f"{name}.dim"](x.to(torch.int64), 1) is NotImplemented


def test_bools_are_chosen_by_logic() -> None:
    """torch.where of two bools, also of different shapes."""
    model = Function(lambda x, w: torch.where(x > 0, x > 1, w > 0))
    x = torch.tensor([[2.0, 0.5, -1.0], [-2.0, 3.0, -0.5]])
    artifact, _ = exported(model, x)
    found = answer(artifact, ParityCase("", (x,), {}))["output"]
    assert torch.equal(torch.from_numpy(found), model(x))
    assert SMALL_TYPES["where.self"](x > 0, x, x) is NotImplemented
