"""Axes of any length on a GPU: recurrent layers over time, and sizes that follow from other axes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.core.errors import ShapeError


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layer_is_right_at_every_length(layer: type[nn.Module]) -> None:
    """Two layers in both directions, at lengths that no parity case had."""
    torch.manual_seed(0)
    model = layer(8, 16, 2, bidirectional=True, batch_first=True).cuda().eval()
    axes = {"input": {0: t2e.Axis("batch", 1, 2, 4), 1: t2e.Axis("time", 1, 6, 12)}}
    config = t2e.RuntimeConfig(cuda_graphs=False)  # an engine with a loop can't be captured
    module = t2e.deploy(model, torch.randn(2, 6, 8, device="cuda"), axes, runtime_config=config, cache=False)
    for batch, time in ((1, 1), (3, 5), (4, 11), (2, 2)):
        x = torch.randn(batch, time, 8, device="cuda")
        with torch.no_grad():
            expected = model(x)[0]
        assert torch.allclose(module(x)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layer_in_half_takes_the_input_at_once(layer: type[nn.Module]) -> None:
    """At a fixed length: the input has a product of its own before the loop."""
    torch.manual_seed(0)
    model = layer(64, 128, 2, bidirectional=True, batch_first=True).cuda().half().eval()
    axes = {"input": {0: t2e.Axis("batch", 1, 4, 8)}}
    config = t2e.RuntimeConfig(cuda_graphs=False)
    sample = torch.randn(4, 24, 64, device="cuda", dtype=torch.half)
    module = t2e.deploy(model, sample, axes, runtime_config=config, cache=False)
    exact = copy.deepcopy(model).float()
    for batch in (1, 3, 8):
        x = torch.randn(batch, 24, 64, device="cuda", dtype=torch.half)
        with torch.no_grad():
            expected = exact(x.float())[0]
        assert (module(x)[0].float() - expected).norm() <= 1e-2 * expected.norm()
    assert "scan" in module.layers()


def test_axis_that_its_only_profile_fixes_has_that_size_alone(tmp_path: Path) -> None:
    """TensorRT-RTX makes an engine without ranges of it; the axis keeps its name in errors."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).cuda().eval()
    sample = torch.randn(4, 3, 8, 8, device="cuda")
    exported = t2e.export(model, sample, {"input": {0: "batch"}})
    module = t2e.TRTModule(t2e.build(exported, profiles=[{"batch": (4, 4, 4)}], cache=False)).cuda()
    x = torch.randn(4, 3, 8, 8, device="cuda")
    for inputs in (x, sample, -x):
        with torch.no_grad():
            torch.testing.assert_close(module(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    with pytest.raises(ShapeError, match="batch = 3"):
        module(sample[:3])
    module.save(tmp_path / "engine")
    assert torch.equal(t2e.load(tmp_path / "engine")(x), module(x))
    with t2e.Processor(tmp_path / "engine") as processor:
        (found,) = processor.infer([x.cpu().numpy()]).values()
        assert np.array_equal(found, module(x).cpu().numpy())


class Cached(nn.Module):
    """What a decoder with a cache does to lengths."""

    def forward(self, past: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat((past, x), 1) * mask


def test_size_that_follows_from_axes_is_right_and_checked(tmp_path: Path) -> None:
    """The mask is past + new long: in the deployed module, and in Processor without PyTorch."""
    sample = tuple(torch.randn(1, size, device="cuda") for size in (4, 2, 6))
    axes = {
        "past": {1: t2e.Axis("past", 2, 4, 8)},
        "x": {1: t2e.Axis("new", 1, 2, 4)},
        "mask": {1: t2e.Axis("total", 3, 6, 12)},
    }
    module = t2e.deploy(Cached().cuda(), sample, axes, cache=False)
    inputs = [torch.randn(1, size, device="cuda") for size in (7, 1, 8)]
    assert torch.equal(module(*inputs), Cached()(*inputs))
    with pytest.raises(ShapeError):
        module(*inputs[:2], torch.randn(1, 9, device="cuda"))
    module.save(tmp_path / "engine")
    arrays = [tensor.cpu().numpy() for tensor in inputs]
    with t2e.Processor(tmp_path / "engine") as processor:
        (found,) = processor.infer(arrays).values()
        assert np.array_equal(found, Cached()(*(tensor.cpu() for tensor in inputs)).numpy())
        with pytest.raises(ShapeError):
            processor.infer([*arrays[:2], arrays[2][:, :-1]])
