"""Normalisation of tensors without positions: PyTorch's, in a form with three dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch2engine.exporter.decompositions.normalizing import NORMALIZING


@pytest.mark.parametrize("affine", [True, False])
def test_groups_of_channels_without_positions_are_pytorchs(affine: bool) -> None:
    """With and without weights; tensors with positions are torch.onnx's."""
    torch.manual_seed(0)
    layer = nn.GroupNorm(2, 6, eps=1e-3, affine=affine)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 6)
    group_norm = NORMALIZING["group_norm"]
    torch.testing.assert_close(group_norm(x, 2, layer.weight, layer.bias, 1e-3), layer(x))
    assert group_norm(x[..., None], 2) is NotImplemented
