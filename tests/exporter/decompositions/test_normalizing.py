"""Normalisations, with their means and scales, and of tensors without positions: PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import answer, exported, graph_of
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.exporter.decompositions.normalizing import NORMALIZING

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 2, 8, generator=GENERATOR)
WEIGHT = torch.rand(2, generator=GENERATOR)
ATEN: Any = torch.ops.aten


@pytest.mark.parametrize("shape", [(8,), (2, 8)])
def test_layer_norm_gives_mean_and_scale(shape: tuple[int, ...]) -> None:
    """With weights and without."""
    weight = torch.rand(shape, generator=GENERATOR)
    for weights in ((None, None), (weight, -weight)):
        expected = torch.native_layer_norm(X, shape, *weights, 1e-5)
        torch.testing.assert_close(NORMALIZING["native_layer_norm"](X, shape, *weights, 1e-5), expected)


class _BatchNorms(nn.Module):
    """PyTorch's own operator, and an ordinary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.BatchNorm1d(2, affine=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, var = WEIGHT * 2, WEIGHT + 0.5
        own = torch.native_batch_norm(x, WEIGHT, -WEIGHT, mean, var, False, 0.1, 1e-5)
        legit = ATEN._native_batch_norm_legit(x, WEIGHT, None, mean, var, False, 0.1, 1e-5)
        return (self.layer(x), *own, *legit)


def test_batch_norm_gives_empty_statistics() -> None:
    """Outside of training PyTorch returns none; each is one node."""
    model = _BatchNorms().eval()
    artifact, _ = exported(model, X)
    expected = model(X)
    found = answer(artifact, ParityCase("", (X,), {}))
    for index, value in enumerate(expected):
        torch.testing.assert_close(torch.from_numpy(found[f"output.{index}"]), value)
    assert [node.op_type for node in graph_of(artifact).node].count("BatchNormalization") == 3


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
