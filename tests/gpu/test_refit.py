"""Refit of engines: exact, undisturbed, and refused where it can't be right.

Enters: models with every trap that a refit can step into. Leaves: proof that an engine follows its model's weights,
through CUDA graphs, streams, threads, files and the cache. Apart because TensorRT builds such engines on a GPU only.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.trt.engine import Engine

pytestmark = pytest.mark.xdist_group("refit")  # one build does for all

CONFIG = t2e.BuildConfig(refittable=True)
BATCH = {0: t2e.Axis("batch", 1, 8, 32)}
BOUNDS = {"fp32": 2e-4, "fp16": 1e-2, "bf16": 4e-2}


class Net(nn.Module):
    """Convolutions with BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().cuda()
    with torch.no_grad():
        model(2 * torch.randn(64, 3, 16, 16, device="cuda") + 1)
    return model.eval()


def images(batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, device="cuda")


@torch.no_grad()
def change(model: nn.Module) -> None:
    """Another value for all that counts, of about the same size: what fp16 holds was settled at deploy."""
    for tensor in {id(part): part for part in (*model.parameters(), *model.buffers())}.values():
        if tensor.is_floating_point():
            tensor.mul_(0.7 + 0.6 * torch.rand_like(tensor))
    for part in model.parameters():
        part.add_(0.02 * torch.randn_like(part))


def error(model: nn.Module, module: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        wanted, got = model(x), module(x)
    if not isinstance(wanted, torch.Tensor):
        wanted, got = wanted[0], got[0]
    return float((got - wanted).norm() / wanted.norm())


def deployed(model: nn.Module, x: torch.Tensor, precision: str = "fp16", **options: Any) -> t2e.TRTModule:
    name = next(iter(inspect.signature(model.forward).parameters))
    module = t2e.deploy(model, x, {name: BATCH}, precision=precision, **{"config": CONFIG, "cache": False, **options})
    assert isinstance(module, t2e.TRTModule)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of `net()` in fp16, built once."""
    folder = tmp_path_factory.mktemp("refit") / "net.t2e"
    module = deployed(net(), images())
    module.warmup()
    return module.save(folder)


def fresh(saved: Path, **config: Any) -> tuple[Net, t2e.TRTModule]:
    module = t2e.load(saved, runtime_config=t2e.RuntimeConfig(**config))
    assert isinstance(module, t2e.TRTModule)
    return net(), module


@pytest.mark.parametrize("graphs", [True, False, "auto"])
@pytest.mark.parametrize("output", ["fresh", "static"])
def test_graphs_and_plans_follow(saved: Path, graphs: bool | str, output: str) -> None:
    """After every refit every shape answers with the new weights, captured or not; static results keep their place."""
    model, module = fresh(saved, cuda_graphs=graphs, output=output)
    inputs = [images(batch) for batch in (1, 8, 32)]
    places: list[list[int]] = []
    for _ in range(4):
        module.refit(model, verify=False)
        for _ in range(6):
            for x in inputs:
                assert error(model, module, x) < BOUNDS["fp16"]
        places.append([module(x).data_ptr() for x in inputs])
        change(model)
    if output == "static":
        assert places.count(places[0]) == len(places)


def test_training_loop_is_followed(saved: Path, figure: Callable[[str, float], None]) -> None:
    """Fifty optimizer steps in training mode, a refit after each; memory stays where it is."""
    model, module = fresh(saved)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, used = images(), 0
    for step in range(50):
        model.train()
        optimizer.zero_grad()
        (model(images(16)) - 1).square().mean().backward()
        optimizer.step()
        module.refit(model)
        model.eval()
        assert error(model, module, x) < BOUNDS["fp16"]
        if step == 10:
            used = torch.cuda.memory_allocated()
    growth = (torch.cuda.memory_allocated() - used) / 2**20
    figure("refit.growth_mib", growth)
    assert growth < 1


def test_other_threads_get_old_or_new_answers(saved: Path) -> None:
    """Never a mixture, on streams of their own, while one thread refits."""
    first, module = fresh(saved)
    second = copy.deepcopy(first)
    change(second)
    inputs = [images(batch) for batch in (1, 8, 32)]
    with torch.no_grad():
        wanted = [[model(x) for x in inputs] for model in (first, second)]
    torch.cuda.synchronize()
    stop = threading.Event()

    def calls() -> int:
        wrong = 0
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                for index, x in enumerate(inputs):
                    got = module(x)
                    near = [(got - want[index]).norm() < 1e-2 * want[index].norm() for want in wanted]
                    wrong += not any(near)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(calls) for _ in range(4)]
        for turn in range(20):
            module.refit((first, second)[(turn + 1) % 2], verify=False)
        stop.set()
        assert [result.result() for result in results] == [0] * 4


def test_calls_in_flight_end_with_the_old_weights(saved: Path) -> None:
    """Enqueued before the refit behind a long pause, they answer as the model was."""
    model, module = fresh(saved)
    x = images()
    module(x)
    with torch.no_grad():
        wanted = model(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        early = module(x)
    change(model)
    module.refit(model, verify=False)
    torch.cuda.synchronize()
    assert (early - wanted).norm() < BOUNDS["fp16"] * wanted.norm()
    assert error(model, module, x) < BOUNDS["fp16"]


def test_weights_are_taken_from_the_callers_stream(saved: Path) -> None:
    """An update that is still to run on the current stream is in what the engine gets."""
    model, module = fresh(saved)
    x = images()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        change(model)
        module.refit(model, verify=False)
    torch.cuda.synchronize()
    assert error(model, module, x) < BOUNDS["fp16"]


def test_graphs_of_the_user_are_not_broken(saved: Path) -> None:
    """A refit under a CUDA graph that holds a call is refused, and goes through after trim()."""
    model, module = fresh(saved)
    x = images()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        held = module(x)
    before = copy.deepcopy(model)
    change(model)
    with pytest.raises(t2e.RefitError, match=r"CUDA graphs of yours that hold calls.*trim\(\)"):
        module.refit(model, verify=False)
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert (held - before(x)).norm() < BOUNDS["fp16"] * before(x).norm()
    del graph, held
    module.trim()
    module.refit(model)
    assert error(model, module, x) < BOUNDS["fp16"]


def test_refused_refit_leaves_the_old_weights(saved: Path) -> None:
    """NaN, another structure: refused before the engine sees anything."""
    model, module = fresh(saved)
    x = images()
    before = module(x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight[0, 0] = 1e6
    with pytest.raises(t2e.RefitError, match=r"'head.weight': got NaN or infinity in the engine's type"):
        module.refit(other)
    other.head = nn.Linear(32, 11).cuda()
    with pytest.raises(t2e.RefitError, match=r"'head\.\w+': got torch.float32 \[11"):
        module.refit(other)
    assert torch.equal(module(x), before)


def test_refit_that_fails_half_way_is_never_answered_with(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls say so until a refit goes through."""
    model, module = fresh(saved)
    x = images()
    module(x)
    change(model)
    real = Engine.refit

    def short(self: Engine, weights: dict[str, tuple[str, int, int]], *rest: Any) -> None:
        real(self, {name: (dtype, place, count // 2) for name, (dtype, place, count) in weights.items()}, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "refit", short)
        with pytest.raises(t2e.RefitError, match=r"weight '"):
            module.refit(model)
    with pytest.raises(t2e.RefitError, match=r"a refit that failed half-way"):
        module(x)
    with pytest.raises(t2e.RefitError, match=r"a refit that failed half-way"):
        pickle.dumps(module)
    assert module.stale(model)
    assert module.refit(model).parity is not None
    assert error(model, module, x) < BOUNDS["fp16"]


def test_weights_that_nothing_gives_are_refused(saved: Path) -> None:
    """An engine with a weight that the program does not know, and a program with one that the engine has not."""
    _, module = fresh(saved)
    program = module._weight_sync.held_weights().program
    name = next(iter(program.weights))
    less = replace(program, weights={key: value for key, value in program.weights.items() if key != name})
    with pytest.raises(t2e.RefitError, match=f"weights '{name}' that follow from nothing in the module"):
        module._backend.check_coverage(less)
    more = replace(program, weights={**program.weights, "gone": name})
    with pytest.raises(t2e.RefitError, match=r"weights 'gone' that TensorRT worked into something else"):
        module._backend.check_coverage(more)


def test_engine_that_was_not_built_for_it_is_refused() -> None:
    """With what to ask for, and the same for a refittable graph's plain engine."""
    model = net()
    module = deployed(model, images(), config=t2e.BuildConfig())
    with pytest.raises(t2e.RefitError, match=r"was not deployed to be refitted"):
        module.refit(model)


def test_engine_travels_with_its_new_weights(saved: Path, tmp_path: Path) -> None:
    """Saved, pickled, copied, from a state_dict, moved: what the last refit gave, and refittable on."""
    model, module = fresh(saved)
    x = images()
    change(model)
    module.refit(model)
    other = fresh(saved)[1]
    other.load_state_dict(module.state_dict())
    twins = [
        t2e.load(module.save(tmp_path / "net.t2e")),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        other,
        module.to("cuda:0"),
    ]
    before = copy.deepcopy(model)
    change(model)
    for twin in twins:
        assert isinstance(twin, t2e.TRTModule)
        assert error(before, twin, x) < BOUNDS["fp16"]
        assert not twin.stale(before) and twin.stale(model)
        twin.refit(model)
        assert error(model, twin, x) < BOUNDS["fp16"]


def test_tracked_model_is_followed_at_every_call(saved: Path) -> None:
    """Moving averages through `.data`, optimizer steps; a capture is refused while it tracks."""
    model, module = fresh(saved)
    x = images()
    module.track(model)
    for _ in range(3):
        for part in model.parameters():
            part.data.mul_(1.1)
        assert error(model, module, x) < BOUNDS["fp16"]
    torch.cuda.synchronize()
    graph, side = torch.cuda.CUDAGraph(), torch.empty(1, device="cuda")
    with torch.cuda.graph(graph):
        side.zero_()  # PyTorch warns of empty graphs
        with pytest.raises(t2e.InputError, match=r"track\(None\)"):
            module(x)
    module.track(None)
    change(model)
    assert error(model, module, x) > 2 * BOUNDS["fp16"]


def test_model_on_the_cpu_is_taken(saved: Path) -> None:
    """Its weights go over the bus."""
    model, module = fresh(saved)
    change(model)
    module.refit(copy.deepcopy(model).cpu())
    assert error(model, module, images()) < BOUNDS["fp16"]


def test_cached_engine_with_other_weights_is_refitted(tmp_path: Path) -> None:
    """The same graph with other weights takes the plan from the cache and refits it; another graph does not."""
    model, x = net(), images()
    first = deployed(model, x, "fp32", cache=tmp_path)
    assert first.report is not None and not any("cache" in note for note in first.report.notes)
    change(model)
    second = deployed(model, x, "fp32", cache=tmp_path)
    assert second.report is not None and any("from the cache" in note for note in second.report.notes)
    assert error(model, second, x) < BOUNDS["fp32"] and not second.stale()
    assert len(t2e.EngineCache(tmp_path).entries()) == 1
    loaded = t2e.load(second.save(tmp_path / "saved.t2e"))
    assert error(model, loaded, x) < BOUNDS["fp32"]
    model.head = nn.Linear(32, 11).cuda()
    third = deployed(model, x, "fp32", cache=tmp_path)
    assert third.report is not None and not any("cache" in note for note in third.report.notes)
