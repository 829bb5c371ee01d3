"""Resizing with antialiasing: PyTorch's, larger and smaller."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.models import error_of, exported
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.resizing import RESIZING

IMAGE = torch.randn(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"])
@pytest.mark.parametrize("size", [(5, 4), (20, 30), (11, 6)])
@pytest.mark.parametrize("is_aligned", [False, True])
def test_images_are_resized(name: str, size: tuple[int, int], is_aligned: bool) -> None:
    """By a size, with pixel centres or corners aligned."""
    arguments = (IMAGE, size, is_aligned, None, None)
    close(RESIZING[name](*arguments), getattr(torch.ops.aten, name)(*arguments))


@pytest.mark.parametrize("name", ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"])
def test_images_are_resized_by_a_factor(name: str) -> None:
    """The factor counts, and not the rounded size."""
    arguments = (IMAGE, (5, 6), False, 0.5, 0.5)
    close(RESIZING[name](*arguments), getattr(torch.ops.aten, name)(*arguments))


class _Half(nn.Module):
    """Resizes any image to 6 x 6."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, size=(6, 6), mode="bilinear", antialias=True)


def test_resizing_follows_a_dynamic_size() -> None:
    """The weights are computed from the size that comes."""
    artifact, cases = exported(_Half(), IMAGE, {"x": {2: Axis("height", 4, 11, 16)}})
    assert error_of(artifact, cases) < 1e-5
