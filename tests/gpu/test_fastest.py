"""runtime="fastest" on a GPU: the engine beside PyTorch in CUDA graphs, eager and compiled; whichever wins answers.

Enters: models for which PyTorch is faster, or the engine is. Leaves: proof that a `LiveModule` keeps the order, the
lifetimes and the arithmetic of a deployed module, and follows the model's weights. Separate because only here PyTorch
answers in an engine's place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu import scenarios
from tests.gpu.scenarios import AXES, ROWS, WIDTH, Deep, Subject, capturing, run_together
from tests.support.live_models import live_module
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.deployed.live.live_program import LIVE_PROGRAMS

pytestmark = pytest.mark.xdist_group("fastest")

PROGRAMS = pytest.mark.parametrize("name", list(LIVE_PROGRAMS))
TOLERANCE = 1e-3
_UNTIL_CAPTURED = 12
_SIDE = 4096


class Product(nn.Module):
    """One large product in half precision: cuBLAS has kernels made for a data-centre GPU, TensorRT-RTX has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(_SIDE, _SIDE) / _SIDE**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Constant(nn.Module):
    """It makes a tensor of numbers on the host: eager waits for that copy, so no CUDA graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * torch.tensor([1.0, 2.0], device=x.device).repeat(WIDTH // 2)


@pytest.fixture(autouse=True)
def _inference_only() -> Iterator[None]:
    with torch.no_grad():
        yield


@functools.cache
def _engine(kind: type[nn.Module]) -> EngineArtifact:
    torch.manual_seed(0)
    sample = torch.randn(256, WIDTH, device="cuda")
    return t2e.deploy(kind().cuda(), sample, AXES, progress=None)._backend.artifact


def _model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().cuda()


def _live(name: str, model: nn.Module, **config: Any) -> Subject:
    """A module that answers by PyTorch in this form, in the place of an engine."""
    engine = t2e.TRTModule(_engine(type(model)), device="cuda:0", runtime_config=t2e.RuntimeConfig(**config))
    module = live_module(engine, model, torch.randn(256, WIDTH, device="cuda"), AXES, LIVE_PROGRAMS[name])
    return Subject(module, model.eval(), TOLERANCE)


def _graphs(subject: Subject) -> int:
    module: Any = subject.module
    return len(module._backend.graphs._graphs)


def _warm(subject: Subject, rows: int = ROWS) -> None:
    for _ in range(_UNTIL_CAPTURED):
        x = torch.randn(rows, WIDTH, device="cuda")
        assert subject.wrong(subject.module(x), x) == 0
    assert _graphs(subject) > 0


def test_pytorch_answers_where_it_is_faster() -> None:
    """A product for which only cuBLAS has kernels made for this GPU; the report has the times of all three."""
    torch.manual_seed(0)
    model = Product().cuda().half()
    axes = {"x": {0: t2e.Axis("rows", 1, 2048, 2048)}}
    x = torch.randn(2048, _SIDE, device="cuda", dtype=torch.half)
    module = t2e.deploy(model, x, axes, runtime="fastest", progress=None)
    print(module.report)  # noqa: T201  # for whoever reads a run
    assert isinstance(module, t2e.LiveModule)
    engine, *pytorch = module.report.tried
    assert [one.name for one in (engine, *pytorch)][1:] == list(LIVE_PROGRAMS)
    assert engine.name.startswith("TensorRT")
    assert all(set(one.microseconds) == {"rows 2048"} for one in module.report.tried), module.report.tried
    assert all("a CUDA graph" in one.reason for one in pytorch), pytorch  # one launch costs less than a graph
    assert module.report.passed
    assert module.report.precision == module.precision == "fp16"
    torch.testing.assert_close(module(x), model(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(t2e.ShapeError, match="rows = 2049"):
        module(torch.randn(2049, _SIDE, device="cuda", dtype=torch.half))
    with pytest.raises(t2e.DeviceError, match="input 'x': got device cpu; expected cuda:0"):
        module(x.cpu())


def test_engine_answers_where_launching_counts() -> None:
    """A tiny model: an engine's call has the least work on the host."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).cuda().half()
    module = t2e.deploy(model, torch.randn(2, 16, device="cuda").half(), runtime="fastest", progress=None)
    print(module.report)  # noqa: T201  # for whoever reads a run
    assert isinstance(module, t2e.TRTModule)
    assert [one.is_chosen for one in module.report.tried] == [True, False, False]
    assert all(one.microseconds for one in module.report.tried), module.report.tried


@PROGRAMS
@pytest.mark.parametrize("kind", ["default", "pool", "external"])
def test_order_and_lifetimes_are_those_of_calls(name: str, kind: str) -> None:
    """A replay waits for the writer of its input, and what follows on the stream waits for the replay."""
    subject, stream = _live(name, _model(Deep), cuda_graphs=True), scenarios.streams()[kind]
    with torch.cuda.stream(stream):
        _warm(subject)
    torch.cuda.synchronize()
    for scenario in (
        scenarios.delayed_producer,
        scenarios.early_consumer,
        scenarios.overwritten_input,
        scenarios.recycled_memory,
        scenarios.kept_results,
        scenarios.awkward_inputs,
    ):
        assert scenario(subject, stream) == 0, scenario.__name__


@PROGRAMS
def test_streams_and_threads_share_a_module(name: str) -> None:
    """Calls on streams of every kind, and four threads at three shapes, get their own answers."""
    subject = _live(name, _model(Deep), cuda_graphs=True)
    for rows in (64, 1000, ROWS):
        _warm(subject, rows)
    assert scenarios.switched_streams(subject, [*scenarios.streams().values(), torch.cuda.Stream()]) == 0
    wrong: list[int] = []

    def call(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for index in range(30):
                x = torch.randn((64, 1000, ROWS)[(seed + index) % 3], WIDTH, device="cuda", generator=generator)
                wrong.append(subject.wrong(subject.module(x), x))

    run_together([functools.partial(call, seed) for seed in range(4)])
    assert wrong == [0] * 120


@PROGRAMS
def test_new_weights_count_from_the_next_call_on(name: str) -> None:
    """Written in place they need nothing; put in the place of others they end the CUDA graphs of the old ones."""
    model = _model(Deep)
    subject = _live(name, model)
    _warm(subject)
    captured = _graphs(subject)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    first: Any = model.first
    before = subject.module(x)
    first.weight.mul_(-2)
    assert subject.wrong(subject.module(x), x) == 0
    assert _graphs(subject) == captured
    assert subject.wrong(before, x) > 0
    first.weight.data = torch.randn_like(first.weight)
    assert subject.wrong(subject.module(x), x) == 0
    assert _graphs(subject) == 0
    first.weight = nn.Parameter(torch.randn_like(first.weight))
    assert subject.wrong(subject.module(x), x) == 0
    _warm(subject)
    model.cpu()
    with pytest.raises(t2e.RefitError, match=r"weight 'first\.weight': got float32\[1024, 64\] on cpu"):
        subject.module(x)


@PROGRAMS
def test_training_flags_and_switches_of_others_do_not_matter(name: str) -> None:
    """The module computes in evaluation mode, without autocast and in float32, before and after it was captured."""
    torch.manual_seed(0)
    model = _model(Deep)
    subject = _live(name, model)
    samples = [torch.randn(ROWS, WIDTH, device="cuda") for _ in range(_UNTIL_CAPTURED)]
    wanted = [model(x) for x in samples]
    allowed = torch.backends.cuda.matmul.allow_tf32
    model.train()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", torch.float16):
            answers = [subject.module(x) for x in samples]
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert model.training
    for answer, right in zip(answers, wanted, strict=True):
        torch.testing.assert_close(answer, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


@PROGRAMS
def test_users_graph_takes_a_call(name: str) -> None:
    """A capture of the user's holds the kernels of the call; later calls go on with the module's own graphs."""
    subject = _live(name, _model(Deep))
    _warm(subject)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        captured = subject.module(x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert subject.wrong(captured, x) == 0
    _warm(subject)


def test_model_that_waits_for_the_gpu_is_answered_without_a_graph() -> None:
    """A failed capture leaves everything usable; the report says why there is none."""
    model = _model(Constant)
    module = t2e.deploy(model, torch.randn(256, WIDTH, device="cuda"), AXES, runtime="fastest", progress=None)
    print(module.report)  # noqa: T201  # for whoever reads a run
    eager = next(one for one in module.report.tried if one.name == "PyTorch in eager")
    assert "without a CUDA graph: " in eager.reason
    torch.randn(8, device="cuda")
    subject = _live("PyTorch in eager", model)
    for _ in range(_UNTIL_CAPTURED):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        assert subject.wrong(subject.module(x), x) == 0


def test_sizes_beside_the_opt_are_answered_by_a_compiled_model() -> None:
    """One size has kernels of its own, others share some; all answers are right."""
    subject = _live("torch.compile", _model(Deep))
    for rows in (1, 2, 7, 100, 255, 256, 1000, 4096):
        x = torch.randn(rows, WIDTH, device="cuda")
        assert subject.wrong(subject.module(x), x) == 0
