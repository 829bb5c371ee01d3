"""Shape plans, contexts, working memory, warm-up and the runtime cache on a real GPU.

Enters: engines of many shapes. Leaves: proof that limits cost time and never answers, and figures of the first call.
Apart from the contract because first calls and memory are counted here, so modules must be fresh.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, settle, tiny_inputs
from tests.gpu.scenarios import AXES, MOST_ROWS, WIDTH, Engines, prepared_shapes
from tests.support.paths import REPOSITORY
from torch2engine.core.select_profile import select_profile
from torch2engine.trt.engine import Engine

pytestmark = pytest.mark.xdist_group("plans")

WAYS = pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])
NINE = (1, 2, 3, 40, 64, 100, 333, 1000, MOST_ROWS)
FIRST_CALL_SECONDS = 0.05
MIB = 2**20


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


class Tower(nn.Module):
    """(batch, 3, 64, 64) -> (batch, 10) through convolutions that need a kernel each."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 40, 64, 96, 136, 192)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, kernel // 2)
            for before, after, kernel, stride in zip(
                widths, widths[1:], (7, 3, 5, 3, 3, 1), (2, 1, 2, 1, 2, 1), strict=False
            )
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        return self.head(x.mean((2, 3)))


def image(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, device="cuda")


@pytest.fixture(scope="module")
def tower() -> tuple[nn.Module, t2e.EngineArtifact]:
    """A model and its engine, which has never run, so that nothing is compiled for it yet."""
    torch.manual_seed(0)
    model = settle(Tower().cuda(), image(4))
    return model, t2e.build(t2e.export(model, image(4), {"x": {0: t2e.Axis("batch", 1, 4, 8)}}))


def seconds(module: nn.Module, x: torch.Tensor) -> float:
    """How long a call takes until its result is there."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    module(x)
    torch.cuda.synchronize()
    return time.perf_counter() - start


@WAYS
@pytest.mark.parametrize(
    "limits", [{"contexts": 2}, {"contexts": 1, "max_shapes": 1}, {"contexts": 3, "max_shapes": 5}]
)
def test_more_shapes_than_contexts_and_plans(engines: Engines, limits: dict[str, int], graphs: bool | str) -> None:
    """Nine shapes in random order, three hundred calls: every answer is right, and memory stays as it is."""
    chance = random.Random(0)
    for name in ("exact", "deep"):
        subject = engines.fresh(name, cuda_graphs=graphs, **limits)
        inputs = [torch.randn(rows, WIDTH, device="cuda") for rows in NINE]
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for index in range(300):
            x = chance.choice(inputs)
            # Some are looked at once everything has run, so that calls can overtake each other if they may.
            kept.append((subject.module(x), x))
            if index % 50 == 49:
                torch.cuda.synchronize()
                assert sum(subject.wrong(got, given) for got, given in kept) == 0
                kept.clear()
        memory = subject.module.memory_bytes
        for x in inputs:
            assert subject.wrong(subject.module(x), x) == 0
        assert subject.module.memory_bytes == memory


@WAYS
def test_alternating_shapes(engines: Engines, graphs: bool | str) -> None:
    """Two shapes in turn, each twice: first, second and hundredth time the answer is right."""
    for subject in engines.subjects(cuda_graphs=graphs):
        inputs = [torch.randn(rows, WIDTH, device="cuda") for rows in (8, 8, 999, 999)]
        results = [(subject.module(x), x) for _ in range(50) for x in inputs]
        torch.cuda.synchronize()
        assert sum(subject.wrong(got, x) for got, x in results) == 0


@torch.no_grad()
@WAYS
@pytest.mark.parametrize("contexts", [1, 16])
@pytest.mark.parametrize(
    "ranges",
    [[(1, 1, 1), (2, 8, 16), (17, 24, 32)], [(1, 8, 32), (1, 1, 1), (5, 5, 5), (20, 20, 20)]],
    ids=["apart", "within"],
)
def test_profiles_and_streams_alternate(ranges: list[tuple[int, int, int]], graphs: bool | str, contexts: int) -> None:
    """Calls that switch between profiles and between streams keep their answers; the narrowest profile answers."""
    profiles = [{"batch": one} for one in ranges]
    model = Tiny().cuda().eval()
    axes = {"x": {0: "batch"}, "scale": {0: "batch"}}
    deployed = t2e.deploy(model, tiny_inputs(), axes, profiles=profiles)
    config = t2e.RuntimeConfig(cuda_graphs=graphs, contexts=contexts, streams=2)
    module = t2e.TRTModule(deployed._artifact, runtime_config=config)
    streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    kept: list[tuple[Any, Any]] = []
    for index in range(120):
        with torch.cuda.stream(streams[index % 3]):
            inputs = tiny_inputs((1, 2 + index % 15, 17 + index % 16)[index // 2 % 3])
            kept.append((inputs, module(*inputs)))
    torch.cuda.synchronize()
    for inputs, got in kept:
        for name, wanted in model(*inputs).items():
            if isinstance(wanted, torch.Tensor):
                torch.testing.assert_close(got[name], wanted, rtol=1e-3, atol=1e-4)
    prepared = prepared_shapes(module)
    assert {one.profile for one in prepared} == set(range(len(ranges)))
    for one in prepared:
        assert one.profile == select_profile(
            module.signature, module._artifact.profiles, {"batch": int(one.shapes[0][0])}
        )


def test_working_memory_follows_the_shapes(engines: Engines) -> None:
    """Small shapes work in little memory, which comes from PyTorch's allocator and goes back by trim()."""
    subject = engines.fresh("deep", cuda_graphs=False)
    assert subject.module.memory_bytes == 0
    x, most = torch.randn(1, WIDTH, device="cuda"), torch.randn(MOST_ROWS, WIDTH, device="cuda")
    subject.module(x)
    small = subject.module.memory_bytes
    allocated = torch.cuda.memory_allocated()
    subject.module(most)
    large = subject.module.memory_bytes
    assert 0 < small < large / 2
    assert large >= 4 * 1024 * MOST_ROWS  # one layer's activations
    assert torch.cuda.memory_allocated() - allocated >= large - small - MIB  # what PyTorch may give beyond the small
    before = torch.cuda.memory_allocated()
    assert subject.module.trim() is None
    assert subject.module.memory_bytes == 0
    assert before - torch.cuda.memory_allocated() >= large
    assert subject.wrong(subject.module(x), x) == 0
    assert subject.module.memory_bytes < large / 2


def resident_bytes() -> int:
    """Host memory in use, when all that can be given back has been."""
    gc.collect()
    torch.cuda.synchronize()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_context_is_replaced_before_it_holds_much_host_memory(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context that two shapes share is a new one after 64 plannings; answers and host memory stay as they are."""
    made = 0
    real = Engine.make_context

    def make_context(engine: Engine) -> Any:
        nonlocal made
        made += 1
        return real(engine)

    monkeypatch.setattr(Engine, "make_context", make_context)
    subject = engines.fresh("deep", contexts=1)
    inputs = [torch.randn(rows, WIDTH, device="cuda") for rows in (3, 17)]
    assert sum(subject.wrong(subject.module(x), x) for _ in range(100) for x in inputs) == 0
    assert made == 4  # 200 / 64
    before = resident_bytes()
    for _ in range(1000):
        for x in inputs:
            subject.module(x)
    assert resident_bytes() - before < 4 << 20
    assert made == 35  # 2200 / 64


def test_deployed_module_starts_without_the_memory_of_its_checks(engines: Engines) -> None:
    """The report says what the largest shapes work in; the module holds none of it, and then what its calls need."""
    module = t2e.deploy(engines.models["deep"], torch.randn(256, WIDTH, device="cuda"), AXES)
    assert isinstance(module, t2e.TRTModule)
    assert module.memory_bytes == 0
    assert module.report is not None
    assert module.report.memory_bytes >= 4 * 1024 * MOST_ROWS  # one layer's activations
    module(torch.randn(1, WIDTH, device="cuda"))
    assert 0 < module.memory_bytes < module.report.memory_bytes / 2


def test_pitfall_32_first_call_after_warmup_waits_for_nothing(
    tower: tuple[nn.Module, t2e.EngineArtifact], figure: Callable[[str, float], None]
) -> None:
    """warmup() takes the wait that a first call has without it: compilation, contexts, CUDA graphs."""
    model, artifact = tower
    inputs = {batch: image(batch) for batch in (1, 8)}
    cold = t2e.TRTModule(artifact).bind()
    cold_seconds = {batch: seconds(cold, x) for batch, x in inputs.items()}
    module = t2e.TRTModule(artifact)
    assert module.warmup([{"batch": 1}, {"batch": 8}]) is None
    warm_seconds = {batch: seconds(module, x) for batch, x in inputs.items()}
    figure("tower.first_call_ms", 1e3 * cold_seconds[1])
    figure("tower.first_call_after_warmup_ms", 1e3 * max(warm_seconds.values()))
    assert max(warm_seconds.values()) < FIRST_CALL_SECONDS < cold_seconds[1]
    with torch.no_grad():
        for x in inputs.values():
            torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-3)


def test_warmup_without_shapes_prepares_min_opt_and_max(tower: tuple[nn.Module, t2e.EngineArtifact]) -> None:
    """By default the smallest, the best and the largest shape of every profile are prepared."""
    module = t2e.TRTModule(tower[1])
    assert module.warmup() is None
    for batch in (1, 4, 8):
        assert seconds(module, image(batch)) < FIRST_CALL_SECONDS


def test_warmup_refuses_what_no_call_could_ask_for(engines: Engines) -> None:
    """An axis that is not there and a size outside the range are typed errors that name what is allowed."""
    module = engines.fresh("exact").module
    with pytest.raises(t2e.InputError) as unknown:
        module.warmup([{"n": 4}, {"rows": 4}])
    assert "rows" in str(unknown.value) and "expected one of n" in str(unknown.value)
    with pytest.raises(t2e.ShapeError) as outside:
        module.warmup([{"n": MOST_ROWS + 1}])
    assert f"got n = {MOST_ROWS + 1}; expected 1..{MOST_ROWS}" in str(outside.value)


FIRST_CALL = """
import json, sys, time
import torch
import torch2engine as t2e
from torch2engine.trt.bindings import find_tensorrt
x = torch.linspace(-1, 1, 2 * 3 * 64 * 64, device="cuda").view(2, 3, 64, 64)
find_tensorrt({flavour!r})
torch.cuda.synchronize()
start = time.perf_counter()
module = t2e.load({path!r})
loaded = time.perf_counter()
y = module(x)
torch.cuda.synchronize()
print(json.dumps([loaded - start, time.perf_counter() - loaded, y.flatten().tolist()]))
"""


def _first_call(path: Path, flavour: str) -> tuple[float, float, list[float]]:
    """Seconds of load and of the first call in a fresh process, and the answer."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL.format(path=str(path), flavour=flavour)],
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    load, first, answer = json.loads(done.stdout.splitlines()[-1])
    return load, first, answer


def _best_first_call(path: Path, flavour: str) -> tuple[float, float, list[float]]:
    # What else the machine does can only make it slower.
    return min((_first_call(path, flavour) for _ in range(2)), key=itemgetter(1))


def test_pitfall_32_saved_kernels_spare_the_next_process_the_compilation(
    tower: tuple[nn.Module, t2e.EngineArtifact], tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    """A module that was called and saved answers three times as fast in a fresh process, with the very same answer."""
    _, artifact = tower
    module = t2e.TRTModule(artifact)
    module.warmup([{"batch": 2}])
    saved = t2e.EngineArtifact.load(module.save(tmp_path / "warm.t2e"))
    assert "runtime.cache" in saved.files
    assert saved.read_runtime_cache()
    saved.with_runtime_cache(b"").save(tmp_path / "cold.t2e")
    flavour = artifact.hardware.flavour
    _, cold, cold_answer = _best_first_call(tmp_path / "cold.t2e", flavour)
    load, warm, warm_answer = _best_first_call(tmp_path / "warm.t2e", flavour)
    figure("tower.process.first_call_cold_ms", 1e3 * cold)
    figure("tower.process.first_call_warm_ms", 1e3 * warm)
    figure("tower.process.load_warm_ms", 1e3 * load)
    assert warm_answer == cold_answer
    assert warm * 3 < cold


def test_kernels_travel_with_the_module(tower: tuple[nn.Module, t2e.EngineArtifact]) -> None:
    """A pickle and a state_dict of a module that was called carry what was compiled for it."""
    model, artifact = tower
    module = t2e.TRTModule(artifact.with_runtime_cache(b""))
    module.warmup([{"batch": 2}])
    twin = t2e.TRTModule(artifact.with_runtime_cache(b""))
    twin.load_state_dict(module.state_dict())
    x = image(2)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), twin):
        assert other._artifact.read_runtime_cache()
        with torch.no_grad():
            torch.testing.assert_close(other(x), model(x), rtol=1e-3, atol=1e-3)


def test_useless_runtime_cache_is_left_aside(tower: tuple[nn.Module, t2e.EngineArtifact]) -> None:
    """A cache that TensorRT-RTX can't read, of another version say, costs time and no answer."""
    model, artifact = tower
    module = t2e.TRTModule(artifact.with_runtime_cache(b"kernels of another time"))
    x = image(3)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["none", "lazy", "eager"])
@torch.no_grad()
def test_kernel_specialization_answers_right(strategy: str) -> None:
    """Kernels compiled for the very shapes give a small network's answers, at the first call and later."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()
    sample = torch.randn(16, WIDTH, device="cuda")
    artifact = t2e.build(t2e.export(model, sample, {"input": {0: t2e.Axis("n", 1, 16, 256)}}))
    module = t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(kernel_specialization=strategy))
    for _ in range(3):
        for rows in (1, 16, 100, 256):
            x = torch.randn(rows, WIDTH, device="cuda")
            for _ in range(5):
                torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_pickles_and_copies_keep_the_runtime_config(engines: Engines) -> None:
    """How a module answers goes where the module goes, and holds there."""
    subject = engines.fresh("exact", cuda_graphs=True, output="static", contexts=3, max_shapes=7, streams=2)
    x = torch.randn(64, WIDTH, device="cuda")
    subject.module(x)
    for twin in (pickle.loads(pickle.dumps(subject.module)), copy.deepcopy(subject.module)):
        assert twin.runtime_config == subject.module.runtime_config
        first = twin(x)
        assert torch.equal(first, x * 2)
        assert twin(x).data_ptr() == first.data_ptr()


def test_deploy_and_load_take_the_runtime_config(tmp_path: Path) -> None:
    """deploy() and load() hand the configuration to the module that they make."""
    config = t2e.RuntimeConfig(output="static", cuda_graphs=False)
    module = t2e.deploy(Tiny().cuda(), tiny_inputs(), TINY_AXES, runtime_config=config)
    loaded = t2e.load(module.save(tmp_path / "tiny.t2e"), runtime_config=config)
    inputs = tiny_inputs(3)
    for either in (module, loaded):
        assert either.runtime_config == config
        kept = either(*inputs)["hidden"]
        assert either(*inputs)["hidden"].data_ptr() == kept.data_ptr()
    assert t2e.load(tmp_path / "tiny.t2e").runtime_config == t2e.RuntimeConfig()
