"""Live parameters of engines: every call reads their present values, through CUDA graphs, copies, files and the cache.

Enters: a model with an adapter's scale as an input of its engine. Leaves: proof that a change needs no refit, and what
it costs. Apart because only a GPU runs engines.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e

pytestmark = pytest.mark.xdist_group("live_parameters")  # one build does for all

PATTERNS = ["*.lora_scale", "temperature"]


class Adapter(nn.Module):
    """A linear layer with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64)
        self.down = nn.Linear(64, 4, bias=False)
        self.up = nn.Linear(4, 64, bias=False)
        self.lora_scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.base(x) + self.lora_scale * self.up(self.down(x))).tanh()


class Net(nn.Module):
    """Two adapters in a list whose name is that of a method of TRTModule, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Adapter(), Adapter())
        self.register_buffer("temperature", torch.tensor([2.0]))
        self.temperature: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) / self.temperature


def net() -> Net:
    torch.manual_seed(0)
    return Net().cuda().eval()


@torch.no_grad()
def change(model: nn.Module, scale: float) -> None:
    """Give all live parameters of a model, or of its deployed module, other values."""
    tensors = model.state_dict(keep_vars=True)
    for path, tensor in tensors.items():
        if path.endswith("lora_scale") or path == "temperature":
            tensor.fill_(scale)


def require_equal(module: nn.Module, model: nn.Module, batch: int = 5) -> None:
    """Both answer the same."""
    x = torch.randn(batch, 64, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of `net()`, built once."""
    axes = {"x": {0: t2e.Axis("batch", 1, 8, 32)}}
    module = t2e.deploy(net(), torch.randn(8, 64, device="cuda"), axes, live_parameters=PATTERNS, cache=False)
    return module.save(tmp_path_factory.mktemp("live") / "net.t2e")


@pytest.mark.parametrize("graphs", [True, False, "auto"])
def test_every_call_reads_the_present_values(saved: Path, graphs: bool | str) -> None:
    """Captured or not, at recurring addresses, and after another tensor was assigned."""
    model = net()
    module: Any = t2e.load(saved, runtime_config=t2e.RuntimeConfig(cuda_graphs=graphs))
    for scale in (0.5, -1.0, 3.0, 0.25):
        change(model, scale)
        change(module, scale)
        for _ in range(6):
            require_equal(module, model)
    change(model, 2.0)
    change(module, 2.0)
    module.temperature = torch.full((1,), 2.0, device="cuda")
    for _ in range(6):
        require_equal(module, model)


def test_graph_of_the_user_reads_the_present_values(saved: Path) -> None:
    """A replay sees what was written in place since the capture."""
    model = net()
    module: Any = t2e.load(saved)
    x = torch.randn(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            answer = module(x)
        change(model, -2.0)
        change(module, -2.0)
        graph.replay()
        torch.testing.assert_close(answer, model(x), rtol=1e-3, atol=1e-4)
    torch.cuda.synchronize()


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_present_values(saved: Path, carry: Callable[[Any], Any]) -> None:
    """They bind to the GPU at their first call, with their live parameters."""
    model = net()
    module: Any = t2e.load(saved)
    change(model, 1.5)
    change(module, 1.5)
    copied = carry(module)
    change(module, 0.0)
    require_equal(copied, model)


def test_engine_from_the_cache_has_the_values_of_the_model(tmp_path: Path) -> None:
    """Their values are no part of the key, and which are live is."""
    model = net()
    x = torch.randn(4, 64, device="cuda")
    cache = t2e.EngineCache(tmp_path)
    t2e.deploy(model, x, live_parameters=PATTERNS, cache=cache)
    change(model, -0.75)
    module = t2e.deploy(model, x, live_parameters=PATTERNS, cache=cache)
    assert any("come from the cache" in note for note in module.report.notes)
    require_equal(module, model, 4)
    change(model, 0.5)  # in the memory that both share
    require_equal(module, model, 4)
    other = t2e.deploy(model, x, live_parameters=PATTERNS[:1], cache=cache)
    assert not any("come from the cache" in note for note in other.report.notes)


def test_arrays_are_answered_with_the_saved_values_or_others(saved: Path) -> None:
    """A Processor has no parameters; a call may give it their values."""
    model = net()
    x = torch.randn(8, 64, device="cuda")
    names = [spec.name for spec in t2e.EngineArtifact.load(saved).signature.live_inputs]
    with t2e.Processor(saved) as processor, torch.no_grad():
        first = torch.from_numpy(processor.infer(x.cpu().numpy())["output"])
        torch.testing.assert_close(first, model(x).cpu(), rtol=1e-3, atol=1e-4)
        change(model, 4.0)
        values = {name: model.state_dict()[name].cpu().numpy() for name in names}
        second = torch.from_numpy(processor.infer({"x": x.cpu().numpy(), **values})["output"])
        torch.testing.assert_close(second, model(x).cpu(), rtol=1e-3, atol=1e-4)


def test_change_before_every_call_is_cheap(saved: Path, figure: Callable[[str, float], None]) -> None:
    """What the host does more for two live parameters, beside the write itself."""
    module: Any = t2e.load(saved)
    x = torch.randn(8, 64, device="cuda")
    scale = module.live_parameters["layers.0.lora_scale"]

    def host_us(work: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(300):
            start = perf_counter()
            work()
            times.append(1e6 * (perf_counter() - start))
        torch.cuda.synchronize()
        return median(times)

    def write_and_call() -> None:
        scale.fill_(0.5)
        module(x)

    with torch.inference_mode():
        for _ in range(20):
            write_and_call()
        torch.cuda.synchronize()
        call = host_us(lambda: module(x))
        write = host_us(lambda: scale.fill_(0.5))
        both = host_us(write_and_call)
    figure("live_parameters.call_us", call)
    figure("live_parameters.change_us", both - call - write)
