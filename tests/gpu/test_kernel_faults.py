"""Patterns that TensorRT-RTX 1.6.1 fuses wrongly answer like PyTorch, since the builder is given another spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import torch2engine as t2e

BATCH = {"x": {0: t2e.Axis("batch", 1, 4, 16)}}
WIDTH = 48


class Heads(nn.Module):
    """Linear layers whose activations are multiplied, each in another way; one output for each."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(5)])
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.linspace(-2, 3, WIDTH))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scaled, by_channel, gated, shared, square = (self.activation(layer(x)) for layer in self.layers)
        return {
            "scaled": scaled * 2,
            "by_channel": by_channel * self.scale,
            "gated": gated * self.gate(x),
            "shared": shared * 3 + shared.tanh(),
            "square": square * square,
        }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", [(WIDTH,), (3, WIDTH)], ids=["matrix", "sequence"])
@pytest.mark.parametrize("activation", [torch.relu, nn.functional.gelu], ids=["relu", "gelu"])
def test_product_after_a_linear_layer_and_its_activation_is_right(
    activation: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], precision: str
) -> None:
    """Constants, channels, gates and squares: every output is as near as its precision allows."""
    torch.manual_seed(0)
    model = Heads(activation).cuda().eval()
    module = t2e.deploy(model, torch.randn(4, *shape, device="cuda"), BATCH, precision=precision, cache=False)
    bound = 1e-5 if precision == "fp32" else 5e-3
    for batch in (1, 7, 16):
        x = torch.randn(batch, *shape, device="cuda")
        with torch.no_grad():
            expected = model(x)
        for name, answer in module(x).items():
            error = (answer - expected[name]).norm() / expected[name].norm()
            assert error < bound, f"{name} at batch {batch}: {error:.2g}"
