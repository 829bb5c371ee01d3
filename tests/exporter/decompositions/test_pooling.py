"""Adaptive pooling: PyTorch's values and places, whether or not the windows have one size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tests.support.models import BATCH, error_of, exported, graph_of
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.pooling import POOLING

ATEN = torch.ops.aten
CASES = [
    ((2, 3, 7), (3,)),
    ((2, 3, 8), (4,)),
    ((2, 3, 5), (7,)),
    ((2, 3, 7, 9), (3, 4)),
    ((2, 3, 8, 5), (4, 2)),
    ((3, 7, 6), (1, 9)),
    ((2, 3, 7, 9, 5), (3, 4, 2)),
    ((2, 3, 8, 4, 4), (4, 2, 1)),
]


@pytest.mark.parametrize(("shape", "windows"), CASES)
def test_largest_elements_and_places_are_pytorchs(shape: Sequence[int], windows: Sequence[int]) -> None:
    """Of several equal ones the first."""
    x = torch.randint(0, 9, tuple(shape), generator=torch.Generator().manual_seed(0)).float()
    x.view(-1)[3] = math.inf
    name = f"adaptive_max_pool{len(windows)}d"
    values, places = POOLING[name](x, windows)
    expected_values, expected_places = getattr(ATEN, name)(x, windows)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0)
    torch.testing.assert_close(places, expected_places)


@pytest.mark.parametrize(("shape", "windows"), CASES)
def test_means_are_pytorchs(shape: Sequence[int], windows: Sequence[int]) -> None:
    """An infinity stays in its own windows."""
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    x.view(-1)[3] = math.inf
    name = "adaptive_avg_pool1d" if len(windows) == 1 else f"_adaptive_avg_pool{len(windows)}d"
    torch.testing.assert_close(POOLING[name](x, windows), getattr(ATEN, name)(x, windows))


WINDOWS = [
    ((3, 2), (2, 2), (1, 0), (1, 1), False),
    ((3, 3), (1, 2), (1, 1), (2, 1), True),
    ((2,), (), (0,), (1,), False),
    ((5, 5), (3, 2), (2, 1), (1, 2), True),
    ((2, 2), (3, 3), (0, 0), (1, 1), True),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "is_ceiled"), WINDOWS)
def test_windows_that_overlap_are_pytorchs(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], is_ceiled: bool
) -> None:
    """Largest elements with their places, and means with a divisor of their own."""
    x = torch.randint(0, 6, (2, 3, 11, 12), generator=torch.Generator().manual_seed(0)).float()
    expected = ATEN.max_pool2d_with_indices(x, kernel, stride, padding, dilation, is_ceiled)
    found = POOLING["max_pool2d_with_indices"](x, kernel, stride, padding, dilation, is_ceiled)
    torch.testing.assert_close(found, expected)
    largest = POOLING["max_pool2d"](x, kernel, stride, padding, dilation, is_ceiled)
    if all(step == 1 for step in dilation):
        assert largest is NotImplemented
    else:
        torch.testing.assert_close(largest, expected[0])
    for includes_padding in (False, True):
        arguments = (x, kernel, stride, padding, is_ceiled, includes_padding, 7)
        torch.testing.assert_close(POOLING["avg_pool2d"](*arguments), ATEN.avg_pool2d(*arguments))
        assert POOLING["avg_pool2d"](*arguments[:-1]) is NotImplemented


def test_windows_of_one_and_three_dimensions_are_pytorchs() -> None:
    """The same in another number of dimensions."""
    row = torch.randint(0, 6, (2, 3, 11), generator=torch.Generator().manual_seed(0)).float()
    arguments: list[object] = [[3], [2], [1], [1], True]
    found = POOLING["max_pool1d_with_indices"](row, *arguments)
    torch.testing.assert_close(found, ATEN.max_pool1d_with_indices(row, *arguments))
    block = torch.randint(0, 6, (2, 3, 7, 8, 9), generator=torch.Generator().manual_seed(0)).float()
    arguments = [[3, 2, 2], [2, 1, 2], [1, 0, 1], [1, 1, 2], True]
    found = POOLING["max_pool3d_with_indices"](block, *arguments)
    torch.testing.assert_close(found, ATEN.max_pool3d_with_indices(block, *arguments))
    arguments = [[3, 2, 2], [2, 1, 2], [1, 0, 1], True, True, 5]
    torch.testing.assert_close(POOLING["avg_pool3d"](block, *arguments), ATEN.avg_pool3d(block, *arguments))


class _EvenPools(nn.Module):
    """Windows of one size."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        volume = x.unflatten(-1, (2, 4))
        return (
            nn.functional.adaptive_avg_pool1d(x[:, 0], 4),
            nn.functional.adaptive_avg_pool2d(x, (3, 2)),
            nn.functional.adaptive_avg_pool3d(volume, (2, 1, 2)),
        )


def test_even_windows_become_an_ordinary_pooling() -> None:
    """In one, two and three dimensions."""
    artifact, cases = exported(_EvenPools(), torch.randn(4, 2, 6, 8), {"x": BATCH})
    assert error_of(artifact, cases) < 1e-6
    assert [node.op_type for node in graph_of(artifact).node].count("AveragePool") == 3


class _Pools(nn.Module):
    """Adaptive pooling of every kind."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        largest, places = nn.functional.adaptive_max_pool2d_with_indices(x, (3, 2))
        places = places + nn.functional.max_pool2d_with_indices(x, 3, stride=1, padding=1)[1].amax((2, 3), keepdim=True)
        return largest, places, nn.functional.adaptive_avg_pool2d(x, (3, None)), nn.functional.adaptive_avg_pool2d(x, 5)


def test_pooling_follows_a_dynamic_size() -> None:
    """The windows are computed from the size that comes, not from the sample's."""
    artifact, cases = exported(_Pools(), torch.randn(2, 2, 7, 9), {"x": {2: Axis("height", 3, 7, 11)}})
    assert error_of(artifact, cases) < 1e-6
