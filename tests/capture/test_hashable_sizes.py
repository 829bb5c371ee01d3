"""Caches by size, in a model's code: one graph is right at every size, and nothing of the trace stays behind."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tests.support.models import answer, exported
from torch2engine.capture.hashable_sizes import hashable_sizes
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.spec import Axis


class MaskByLength(nn.Module):
    """Keeps a mask for each length that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D], causal sums."""
        if x.shape[1] not in self.masks:
            self.masks[x.shape[1]] = torch.ones(x.shape[1], x.shape[1]).tril()
        return self.masks[x.shape[1]] @ x


@functools.lru_cache
def _positions(length: int) -> torch.Tensor:
    return torch.arange(length) * 0.5


class CachedPositions(nn.Module):
    """Takes positions from a function that keeps its results."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, D] -> [B, N, D]."""
        return x + _positions(x.shape[1])[:, None]


@pytest.mark.parametrize("model", [MaskByLength(), CachedPositions()], ids=["dict", "lru_cache"])
def test_cache_by_size_is_right_at_every_size(model: nn.Module) -> None:
    """Whatever the cache held before, and although the sample's length is in it."""
    model(torch.rand(2, 3, 2))  # a length that the graph must not confuse with its own
    artifact, _ = exported(model, torch.rand(2, 5, 2), {"x": {1: Axis("n", 2, 5, 9)}})
    for length in (2, 3, 5, 9):
        x = torch.rand(2, length, 2)
        (found,) = answer(artifact, ParityCase("", (x,), {})).values()
        torch.testing.assert_close(torch.from_numpy(found), model(x))
    assert all(type(key) is int for key in getattr(model, "masks", {}))


def test_second_export_does_not_find_the_sizes_of_the_first() -> None:
    """functools.lru_cache keeps a size of an earlier trace, whose result would be another trace's tensor."""
    axes = {"x": {1: Axis("n", 2, 5, 9)}}
    for _ in range(2):
        artifact, _ = exported(CachedPositions(), torch.rand(2, 5, 2), axes)
        x = torch.rand(2, 7, 2)
        (found,) = answer(artifact, ParityCase("", (x,), {})).values()
        torch.testing.assert_close(torch.from_numpy(found), x + torch.arange(7)[:, None] * 0.5)


def test_torch_has_its_own_hash_again() -> None:
    """Also where the contexts of two threads overlap and end in any order."""
    before = torch.SymInt.__hash__
    first = hashable_sizes()
    second = hashable_sizes()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.SymInt.__hash__ is not before
    second.__exit__(None, None, None)
    assert torch.SymInt.__hash__ is before
