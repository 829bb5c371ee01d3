"""deploy() times a new engine beside its model: PyTorch is named where it is faster, and nothing is left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.deployed.call_times import time_calls

WIDTH = 4096
ROWS = t2e.Axis("rows", 1, 2048, 2048)


class Product(nn.Module):
    """One large product in half precision: cuBLAS has kernels made for a data-centre GPU, TensorRT-RTX has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Pointwise(nn.Module):
    """Twelve passes over memory in eager, and one in an engine."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.tanh(x) * 1.5 + x
        return x


class Counting(nn.Module):
    """It counts its calls, drops values in training, and keeps a list."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(1)
        return self.dropout(self.layer(x)).relu()


def speed_notes(module: t2e.TRTModule) -> list[str]:
    """The notes that compare the engine with PyTorch."""
    return [note for note in module.report.notes if note.startswith("PyTorch")]


@pytest.fixture(scope="module")
def product() -> nn.Module:
    torch.manual_seed(0)
    return Product().cuda().half().eval()


def test_model_that_is_faster_in_pytorch_is_named_with_figures_and_the_reason(
    product: nn.Module, tmp_path: Path
) -> None:
    """One note has both times at the profile's opt; a later deploy from the cache keeps it, and times nothing."""
    x = torch.randn(2048, WIDTH, device="cuda", dtype=torch.half)
    axes = {"x": {0: ROWS}}
    module = t2e.deploy(product, x, axes, cache=tmp_path)
    (note,) = speed_notes(module)
    times = [float(number) for number in re.findall(r"(\d+) µs", note)]
    assert "at rows 2048: " in note
    assert times[1] > times[0] > 0  # PyTorch's, then the engine's
    assert f"TensorRT-RTX has no kernels made for {torch.cuda.get_device_name()}" in note
    assert "speed" in module.report.seconds
    again = t2e.deploy(product, x, axes, cache=tmp_path)
    assert speed_notes(again) == [note]
    assert "speed" not in again.report.seconds


def test_engine_that_is_faster_has_no_note() -> None:
    """It was timed, and there is nothing to say."""
    x = torch.rand(32, 1024, 128, device="cuda")
    module = t2e.deploy(Pointwise(), x, {"x": {0: t2e.Axis("batch", 1, 32, 32)}}, cache=False)
    assert speed_notes(module) == []
    assert "speed" in module.report.seconds


def test_model_in_training_is_left_as_it_was() -> None:
    """Its flags, counters, attributes and gradients, and the process's TF32."""
    torch.manual_seed(0)
    model = Counting().cuda().train()
    model.dropout.eval()  # frozen on purpose
    x = torch.rand(8, 64, device="cuda")
    model(x).sum().backward()
    gradient, version = model.layer.weight.grad, model.layer.weight._version
    assert gradient is not None
    values = gradient.clone()
    switch = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        module = t2e.deploy(model, x, cache=False)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = switch
    assert "speed" in module.report.seconds
    assert (model.training, model.dropout.training, model.calls.item()) == (True, False, 1)
    assert model.seen == [1]
    assert model.layer.weight.grad is gradient
    assert torch.equal(gradient, values)
    assert model.layer.weight._version == version


def test_nothing_is_timed_where_the_model_is_elsewhere_or_nobody_asks(product: nn.Module) -> None:
    """A model on the CPU has no time that would say anything."""
    torch.manual_seed(0)
    model = nn.Linear(16, 16).eval()
    module = t2e.deploy(model, torch.rand(4, 16), cache=False)
    assert module.device is not None and module.device.type == "cuda"
    assert "speed" not in module.report.seconds
    off = t2e.BuildConfig(compare_speed=False)
    module = t2e.deploy(product, torch.randn(64, WIDTH, device="cuda", dtype=torch.half), cache=False, config=off)
    assert "speed" not in module.report.seconds
    assert speed_notes(module) == []


def test_model_that_waits_for_the_gpu_has_times_too() -> None:
    """It reads a value in every call, which no CUDA graph could hold."""

    def waits() -> float:
        return float(torch.ones(1000, device="cuda").sum())

    times = time_calls({"waits": waits}, torch.device("cuda", 0), 0.5)
    assert 0 < times["waits"].kernels_us <= times["waits"].call_us


def test_kernels_without_their_launches_take_as_long_as_in_a_cuda_graph() -> None:
    """Many small ones: in eager their launches are all that counts. A graph has gaps of its own between them."""
    x = torch.rand(256, 256, device="cuda")

    def chain() -> torch.Tensor:
        y = x
        for _ in range(60):
            y = y + 1
        return y

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        chain()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    device = torch.device("cuda", 0)
    eager, replayed = (time_calls({"one": call}, device, 0.5)["one"] for call in (chain, graph.replay))
    assert eager.kernels_us < 0.8 * eager.call_us
    assert 0.5 * replayed.call_us < eager.kernels_us < 2 * replayed.call_us
