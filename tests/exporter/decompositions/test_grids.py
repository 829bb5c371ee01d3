"""Volumes sampled at the points of a grid: PyTorch's, for every interpolation and every edge."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import BATCH, Function, error_of, exported
from torch2engine.exporter.decompositions.grids import GRIDS

GENERATOR = torch.Generator().manual_seed(0)
VOLUME = torch.randn(2, 3, 4, 5, 6, generator=GENERATOR)
GRID = torch.rand(2, 3, 4, 2, 3, generator=GENERATOR) * 3.6 - 1.8


@pytest.mark.parametrize("interpolation", [0, 1], ids=["linear", "nearest"])
@pytest.mark.parametrize("padding", [0, 1, 2], ids=["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_samples_are_pytorchs(interpolation: int, padding: int, align_corners: bool) -> None:
    """Points outside of the volume too; a volume may be one element thick."""
    for volume in (VOLUME, VOLUME[:, :, :1]):
        arguments = (volume, GRID, interpolation, padding, align_corners)
        found = GRIDS["grid_sampler_3d"](*arguments)
        torch.testing.assert_close(found, torch.ops.aten.grid_sampler_3d(*arguments), rtol=1e-4, atol=1e-5)


def test_volumes_are_sampled_in_a_dynamic_batch() -> None:
    """By grid_sample, as users call it."""
    model = Function(lambda x, w: torch.nn.functional.grid_sample(x, x[:, :3].mT.flip(1) * w, align_corners=False))
    artifact, cases = exported(model, torch.rand(2, 3, 3, 3, 3) - 0.5, {"x": BATCH})
    assert error_of(artifact, cases[:2]) < 1e-5
