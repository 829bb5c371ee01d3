"""What TensorRT-RTX 1.6.1 computes wrongly answers like PyTorch, since the builder is given another spelling.

Models that PyTorch computes by operators of the GPU alone stand here too.
"""

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


class WorstOverlap(nn.Module):
    """How much each box is covered by another one: the middle of a suppression."""

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        first, second = boxes[:, None], boxes[None]
        ends, starts = torch.minimum(first[..., 2:], second[..., 2:]), torch.maximum(first[..., :2], second[..., :2])
        common = (ends - starts).clamp(min=0).prod(-1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        overlap = common / (areas[:, None] + areas[None] - common)
        return (overlap * (first[..., 0] < second[..., 0])).amax(1)


def test_largest_overlap_of_boxes_is_right() -> None:
    """A product of two sides, a mask as a factor, and a maximum over boxes: fused, most of them are off."""
    torch.manual_seed(0)
    starts = torch.rand(20, 2, device="cuda") * 40
    boxes = torch.cat([starts, starts + 4 + torch.rand(20, 2, device="cuda") * 12], 1)
    module = t2e.deploy(WorstOverlap(), boxes, cache=False)
    torch.testing.assert_close(module(boxes), WorstOverlap()(boxes), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("sizes", [(31,), (5, 7)], ids=["sequence", "picture"])
def test_group_norm_of_one_group_is_right(sizes: tuple[int, ...], precision: str) -> None:
    """It is a norm over all channels, with and without weights; an instance norm is 20 % off."""
    torch.manual_seed(0)
    layer: type[nn.Module] = nn.Conv1d if len(sizes) == 1 else nn.Conv2d
    options = {"kernel_size": 3, "padding": 1}
    norms = [nn.GroupNorm(1, 24), layer(24, 8, **options), nn.GroupNorm(1, 8, affine=False)]
    model = nn.Sequential(layer(4, 24, **options), *norms).cuda().eval()
    module = t2e.deploy(
        model, torch.randn(4, 4, *sizes, device="cuda"), {"input": BATCH["x"]}, precision=precision, cache=False
    )
    bound = 1e-5 if precision == "fp32" else 5e-3
    for batch in (1, 7, 16):
        x = torch.randn(batch, 4, *sizes, device="cuda")
        with torch.no_grad():
            expected = model(x)
        error = (module(x) - expected).norm() / expected.norm()
        assert error < bound, f"batch {batch}: {error:.2g}"


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
def test_recurrent_cell_of_a_gpu_deploys(cell: type[nn.Module]) -> None:
    """PyTorch has one operator for a whole cell on a GPU, which no export knows."""
    torch.manual_seed(0)
    model = cell(WIDTH, 16).cuda().eval()
    x = torch.randn(4, WIDTH, device="cuda")
    module = t2e.deploy(model, x, {"input": BATCH["x"]}, cache=False)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-5)
