"""Stacking: PyTorch's, for numbers, rows, matrices and layers."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.stacking import STACKING

LISTS = [[torch.ones(shape), torch.zeros(shape)] for shape in ((), (3,), (2, 3), (2, 3, 4))]


@pytest.mark.parametrize("tensors", LISTS, ids=["numbers", "rows", "matrices", "layers"])
def test_stacks_are_pytorchs(tensors: list[torch.Tensor]) -> None:
    """In the place and shape that NumPy gives them."""
    for name in ("hstack", "vstack", "dstack", "column_stack"):
        torch.testing.assert_close(STACKING[name](tensors), getattr(torch, name)(tensors))
    for name in ("atleast_1d", "atleast_2d", "atleast_3d"):
        torch.testing.assert_close(STACKING[name](tensors[0]), getattr(torch, name)(tensors[0]))
        torch.testing.assert_close(STACKING[f"{name}.Sequence"](tensors), [*getattr(torch, name)(tensors)])
