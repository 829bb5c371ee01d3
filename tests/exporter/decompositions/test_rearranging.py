"""Turning, cropping and dropping dimensions: PyTorch's, for symbolic sizes too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.support.models import Function, error_of, exported
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.rearranging import REARRANGING

X = torch.arange(20.0).reshape(4, 5)
ONES = torch.randn(1, 3, 1, generator=torch.Generator().manual_seed(0))


def test_dimensions_are_turned() -> None:
    """By more than their size, and backwards; without dimensions in one row."""
    roll = REARRANGING["roll"]
    torch.testing.assert_close(roll(X, [1, -7], [0, 1]), X.roll([1, -7], [0, 1]))
    torch.testing.assert_close(roll(X, [3]), X.roll(3))


def test_only_ones_are_dropped() -> None:
    """All, one, or some of the dimensions."""
    torch.testing.assert_close(REARRANGING["squeeze"](ONES), ONES.squeeze())
    torch.testing.assert_close(REARRANGING["squeeze.dim"](ONES, 1), ONES.squeeze(1))
    torch.testing.assert_close(REARRANGING["squeeze.dims"](ONES, [0, -1]), ONES.squeeze([0, -1]))


@pytest.mark.parametrize(
    ("padding", "mode"),
    [
        ([-1, 2, 1, -2], "replicate"),
        ([-1, 2, 1, -2], "reflect"),
        ([-1, -1, -2, 0], "replicate"),
        ([-1, -1, -2, 0], "reflect"),
        ([-7, 8, 0, 0], "replicate"),  # all of a dimension
        ([0, 1, 1, 0], "replicate"),
    ],
)
def test_negative_padding_crops(padding: list[int], mode: str) -> None:
    """What only pads is torch.onnx's."""
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found = REARRANGING["pad"](x, padding, mode)
    if min(padding) >= 0:
        assert found is NotImplemented
    else:
        torch.testing.assert_close(found, functional.pad(x, padding, mode))


def test_half_turn_follows_a_dynamic_size() -> None:
    """fftshift and roll by n // 2, and squeeze beside a dynamic axis."""
    model = Function(
        lambda x, w: (
            torch.fft.fftshift(x, 1),
            x.roll(x.shape[1] // 2, 1),
            x.unsqueeze(1).squeeze(),
            x.squeeze(1),
        )
    )
    artifact, cases = exported(model, torch.randn(2, 6), {"x": {1: Axis("n", 4, 6, 12)}})
    assert error_of(artifact, cases) == 0.0


def test_strides_follow_memory() -> None:
    """A transposed tensor is read in the order of its memory; torch.onnx reads contiguous ones rightly itself."""
    as_strided = REARRANGING["as_strided"]
    view = X.reshape(2, 2, 5).permute(2, 0, 1)
    torch.testing.assert_close(as_strided(view, (3, 4), (5, 1), 2), view.as_strided((3, 4), (5, 1), 2))
    assert as_strided(X, (3, 4), (5, 1)) is NotImplemented
    assert as_strided(X[:, :3], (3, 4), (5, 1)) is NotImplemented  # parts of its memory are not in the tensor


def test_overlapping_windows_of_a_transposed_tensor_follow_a_dynamic_size() -> None:
    """As in attention over a sliding window, whose result parity found wrong before."""
    model = Function(lambda x, w: x.transpose(0, 1).as_strided((x.shape[0], 5, 2, 4), (24, 4, 4, 1)) * 1.0)
    artifact, cases = exported(model, torch.randn(2, 6, 4), {"x": {0: Axis("batch", 1, 2, 4)}})
    assert error_of(artifact, cases) == 0.0
