"""Triangles: PyTorch's, for every diagonal, shape and dtype."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.triangles import TRIANGLES


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 5), (4, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("diagonal", [-4, -1, 0, 2, 6])
def test_triangles_are_pytorchs(shape: tuple[int, ...], dtype: torch.dtype, diagonal: int) -> None:
    """Also where nothing or all is kept, and the rest is infinite."""
    x = torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        x = x * torch.inf
    for name, decomposition in TRIANGLES.items():
        expected = getattr(torch, name)(x, diagonal)
        found = decomposition(x, diagonal)
        assert found.dtype == dtype
        assert torch.equal(found, expected)
