"""A model in parts as one CUDA graph: engines and PyTorch's operators together.

Enters: models in parts whose operators a graph may hold, and some whose may not. Leaves: proof that replays answer like
eager under the contract of a call, and that a capture that fails leaves everything usable. Separate from the fallback
because only here the whole is captured.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu import scenarios
from tests.gpu.scenarios import AXES, CALLS, LONG_PAUSE, ROWS, WIDTH, Subject, capturing, run_together
from tests.support.fallback_models import split
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.deployed import whole_graph
from torch2engine.trt.cuda_graph import CudaGraph, NotCapturable, WorkEvent

pytestmark = pytest.mark.xdist_group("whole graphs")

GRAPHS = pytest.mark.parametrize("graphs", ["auto", True], ids=["auto", "graphs"])
_UNTIL_CAPTURED = 12  # calls of one shape, after which "auto" has captured
TOLERANCE = 1e-3


class Halves(nn.Module):
    """(n, 64) -> (n, 64) in three engines; between them is an operator that no engine takes.

    Args:
        between: takes a tensor and returns another one of its shape.
    """

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = self.layers
        x = self.between(first(x).tanh() * 2)
        x = self.between(second(x).tanh() * 2)
        return third(x).sigmoid() + x


def _split(x: torch.Tensor) -> torch.Tensor:
    positive, negative = split(x)
    return positive - 2 * negative


@torch.library.custom_op("torch2engine_gpu_test::keep_if_positive", mutates_args=())
def keep_if_positive(x: torch.Tensor) -> torch.Tensor:
    """An operator that waits for the GPU, and has no tag that says so."""
    return x * 2 if float(x.square().sum()) > 0 else x.clone()


@torch.library.custom_op("torch2engine_gpu_test::add_no_noise", mutates_args=())
def add_no_noise(x: torch.Tensor) -> torch.Tensor:
    """An operator that draws random numbers, and has no tag that says so."""
    return x + 0 * torch.rand_like(x)


@torch.library.custom_op("torch2engine_gpu_test::hidden", mutates_args=())
def hidden(x: torch.Tensor) -> torch.Tensor:
    """An operator of whose work a capture sees another part than runs in calls."""
    return torch.zeros_like(x) if torch.cuda.is_current_stream_capturing() else x * 2


for _operator in (keep_if_positive, add_no_noise, hidden):
    _operator.register_fake(torch.empty_like)


@functools.cache
def _deployed(between: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, PartsArtifact]:
    """A model, and its parts without any CUDA graph yet."""
    torch.manual_seed(0)
    model = Halves(between).cuda().eval()
    config, runtime_config = t2e.BuildConfig(refittable=True), t2e.RuntimeConfig(cuda_graphs=False)
    sample = torch.randn(256, WIDTH, device="cuda")
    module = t2e.deploy(model, sample, AXES, fallback=True, config=config, runtime_config=runtime_config, progress=None)
    assert isinstance(module, t2e.PartsModule)
    assert [part.runs_in == "PyTorch" for part in module.report.parts] == [False, True, False, True, False]
    return model, module._backend.artifact


def _subject(between: Callable[[torch.Tensor], torch.Tensor] = torch.special.bessel_j0, **config: Any) -> Subject:
    model, artifact = _deployed(between)
    module: Any = t2e.PartsModule(artifact, runtime_config=t2e.RuntimeConfig(**config))
    return Subject(module, model, TOLERANCE)


def _graphs(subject: Subject) -> int:
    """The CUDA graphs that hold whole calls."""
    module: Any = subject.module
    whole = module._backend._live._whole_graphs
    return 0 if whole is None else len(whole._graphs)


def _call(subject: Subject, rows: int, calls: int = _UNTIL_CAPTURED) -> None:
    """Call with new inputs of this shape, each of which has its right answer."""
    for _ in range(calls):
        x = torch.randn(rows, WIDTH, device="cuda")
        assert subject.wrong(subject.module(x), x) == 0


def _warm(subject: Subject, rows: int = ROWS) -> None:
    """Call until whole calls of this shape are captured."""
    _call(subject, rows)
    assert _graphs(subject) > 0


@pytest.fixture(autouse=True)
def _inference_only() -> Iterator[None]:
    with torch.no_grad():
        yield


@GRAPHS
def test_replays_answer_new_inputs_at_new_addresses(graphs: bool | str) -> None:
    """Each call gets its own answer at its shape, whatever the addresses are; the same bits as part by part."""
    plain, subject = _subject(cuda_graphs=False), _subject(cuda_graphs=graphs)
    assert _graphs_of_plain(plain) == 0
    for rows in (64, ROWS, 1000):
        _warm(subject, rows)
    assert _graphs(subject) == 3
    kept = [torch.randn(rows, WIDTH, device="cuda") for rows in (64, ROWS, 1000) for _ in range(CALLS)]
    for x in kept:
        assert torch.equal(subject.module(x), plain.module(x))
        assert torch.equal(subject.module.infer([x])["output"], plain.module(x))


def test_custom_operators_are_captured_where_the_user_wishes() -> None:
    """Two results of an operator that nobody knows are no obstacle under True; "auto" goes part by part."""
    wished, automatic = _subject(_split, cuda_graphs=True), _subject(_split, cuda_graphs="auto")
    _warm(wished)
    for _ in range(_UNTIL_CAPTURED):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        assert torch.equal(wished.module(x), automatic.module(x))
    assert _graphs(automatic) == 0


def _graphs_of_plain(subject: Subject) -> int:
    _ = subject.module(torch.randn(64, WIDTH, device="cuda"))
    return _graphs(subject)


@pytest.mark.parametrize("kind", ["default", "pool", "external"])
def test_order_and_lifetimes_are_those_of_calls(kind: str) -> None:
    """A replay waits for the writer of its input, and what follows on the stream waits for the replay."""
    subject, stream = _subject(cuda_graphs=True), scenarios.streams()[kind]
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
    assert _graphs(subject) > 0


@GRAPHS
def test_parts_share_working_memory(graphs: bool | str) -> None:
    """Engines of two modules work in one memory, before whole calls are captured and beside them."""
    shared = t2e.SharedMemory()
    first, second = (_subject(cuda_graphs=graphs, shared_memory=shared) for _ in range(2))
    x = torch.randn(ROWS, WIDTH, device="cuda")
    assert first.wrong(first.module(x), x) == 0
    alone = shared.memory_bytes
    assert second.wrong(second.module(x), x) == 0
    assert shared.memory_bytes == alone > 0
    _warm(first)
    assert _graphs(first) == 1
    side = torch.cuda.Stream()
    for _ in range(CALLS):
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG_PAUSE // 20)
        with torch.cuda.stream(side):
            others = [second.module(x) for _ in range(2)]
        answers = [first.module(x) for _ in range(2)]
        torch.cuda.synchronize()
        assert [second.wrong(one, x) for one in others] == [first.wrong(one, x) for one in answers] == [0, 0]


def test_streams_take_turns() -> None:
    """Calls on streams of every kind share the buffers of one graph and get their own answers."""
    subject = _subject(cuda_graphs=True)
    _warm(subject)
    assert scenarios.switched_streams(subject, [*scenarios.streams().values(), torch.cuda.Stream()]) == 0


@pytest.mark.parametrize("waits", [True, False], ids=["in order", "out of order"])
def test_stream_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """A replay on another stream leaves the results of an earlier one alone; without the wait it does not."""
    subject = _subject(cuda_graphs=True)
    _warm(subject)
    launch = CudaGraph.launch
    pauses = [LONG_PAUSE, 0]

    def launch_and_pause(graph: CudaGraph, stream: int) -> None:
        launch(graph, stream)
        torch.cuda._sleep(pauses.pop(0))  # between the graph and the copies of its results

    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    x, other = torch.randn(ROWS, WIDTH, device="cuda"), torch.randn(ROWS, WIDTH, device="cuda")
    torch.cuda.synchronize()
    with monkeypatch.context() as patch:
        patch.setattr(CudaGraph, "launch", launch_and_pause)
        if not waits:
            patch.setattr(WorkEvent, "let_wait", lambda event, stream: None)
        with torch.cuda.stream(first):
            early = subject.module(x)
        with torch.cuda.stream(second):
            late = subject.module(other)
    torch.cuda.synchronize()
    assert not pauses
    assert subject.wrong(late, other) == 0
    assert (subject.wrong(early, x) == 0) is waits


def test_threads_share_the_graphs() -> None:
    """Four threads on streams of their own, at three shapes, get their own answers."""
    subject = _subject(cuda_graphs=True)
    for rows in (64, 100, 1000):
        _warm(subject, rows)
    wrong: list[int] = []

    def call(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            for index in range(60):
                x = torch.randn((64, 100, 1000)[(seed + index) % 3], WIDTH, device="cuda", generator=generator)
                wrong.append(subject.wrong(subject.module(x), x))

    run_together([functools.partial(call, seed) for seed in range(4)])
    assert wrong == [0] * 240
    assert _graphs(subject) == 3


@GRAPHS
def test_thread_that_has_not_used_cuda_is_answered(graphs: bool | str) -> None:
    """Nothing of CUDA is set up in a thread whose first act is a call, by a graph or part by part."""
    for subject in (_subject(cuda_graphs=graphs), _subject(_split, cuda_graphs="auto")):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        for _ in range(_UNTIL_CAPTURED):
            subject.module(x)
        answers: list[torch.Tensor] = []
        run_together([torch.no_grad()(lambda: answers.append(subject.module(x)))])  # noqa: B023  # run at once
        assert subject.wrong(answers[0], x) == 0


def test_static_results_are_the_same_tensors() -> None:
    """output="static" hands out the graph's own result, which the next call overwrites."""
    subject = _subject(cuda_graphs=True, output="static")
    _warm(subject)
    first, second = torch.randn(ROWS, WIDTH, device="cuda"), torch.randn(ROWS, WIDTH, device="cuda")
    result = subject.module(first)
    assert subject.wrong(result, first) == 0
    assert subject.module(second).data_ptr() == result.data_ptr()
    assert subject.wrong(result, second) == 0


def test_inference_mode_and_normal_mode_share_a_graph() -> None:
    """Results are of the caller's mode, whichever mode the graph was made in."""
    for first in (True, False):
        subject = _subject(cuda_graphs=True)
        for inference in (first, not first):
            with torch.inference_mode(inference):
                _warm(subject)
                x = torch.randn(ROWS, WIDTH, device="cuda")
                assert subject.module(x).is_inference() == inference


def test_few_shapes_are_captured_and_all_are_right() -> None:
    """Memory for whole calls is bounded: the ninth shape and later ones are answered part by part."""
    subject = _subject(cuda_graphs=True)
    for rows in range(1, 12):
        _call(subject, rows, calls=4)
    assert _graphs(subject) == 8


def test_refit_drops_the_graphs_and_new_ones_have_the_new_weights() -> None:
    """No graph of the old weights is launched, and the next calls are captured again."""
    subject = _subject(cuda_graphs=True)
    _warm(subject)
    torch.manual_seed(1)
    other = Subject(subject.module, Halves(torch.special.bessel_j0).cuda().eval(), TOLERANCE)
    subject.module.refit(other.model, verify=False)
    assert _graphs(subject) == 0
    _warm(other)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    assert subject.wrong(subject.module(x), x) > 0


def _memory() -> int:
    """Bytes that PyTorch's tensors have on the GPU, without those of modules that only wait for the collector."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_trim_gives_the_memory_of_graphs_back() -> None:
    """After trim no graph is left; calls are right, and are captured again."""
    subject = _subject(cuda_graphs=True)
    subject.module(torch.randn(ROWS, WIDTH, device="cuda"))
    subject.module.trim()
    before = _memory()
    _warm(subject)
    assert _memory() > before
    subject.module.trim()
    assert _graphs(subject) == 0
    assert _memory() == before
    _warm(subject)


def test_module_that_is_dropped_amid_its_work_ends_in_order() -> None:
    """A replay in flight ends before its memory and contexts go."""
    x = torch.randn(ROWS, WIDTH, device="cuda")
    model, _ = _deployed(torch.special.bessel_j0)
    wanted = model(x)
    for _ in range(3):
        subject = _subject(cuda_graphs=True)
        _warm(subject)
        torch.cuda._sleep(LONG_PAUSE)
        result = subject.module(x)
        del subject
        gc.collect()
        rubbish = [torch.full((ROWS, WIDTH), torch.nan, device="cuda") for _ in range(20)]
        torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-3)
        del rubbish


def test_users_graph_takes_the_parts() -> None:
    """A capture of the user's holds the call part by part, before and after it was captured as a whole."""
    subject = _subject(cuda_graphs=True)
    _warm(subject)
    for _ in range(2):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        subject.module(x)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph):
            captured = subject.module(x)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert subject.wrong(captured, x) == 0
        assert subject.wrong(subject.module(x), x) == 0


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (keep_if_positive, "."),
        (add_no_noise, "."),
        (hidden, "a replay did not repeat the call"),
    ],
    ids=["waits", "random", "unseen work"],
)
def test_capture_that_fails_leaves_everything_usable(
    between: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    """One warning; afterwards calls, random numbers, captures of others and refits work as before."""
    subject = _subject(between, cuda_graphs=True)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    subject.module(x)
    with pytest.warns(UserWarning, match=f"are no one CUDA graph, so calls go through them one by one: .*{reason}"):
        answer = subject.module(x)
    assert subject.wrong(answer, x) == 0
    for _ in range(CALLS):
        assert subject.wrong(subject.module(x.normal_()), x) == 0
    assert _graphs(subject) == 0
    torch.manual_seed(3)
    drawn = [torch.rand(5, device="cuda") for _ in range(2)]
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5, device="cuda"), drawn[0])
    assert not torch.equal(*drawn)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        noise = torch.rand(5, device="cuda")
    graph.replay()
    first = noise.clone()
    graph.replay()
    assert not torch.equal(noise, first)
    subject.module.refit(subject.model, verify=True)
    assert subject.wrong(subject.module(x), x) == 0
    _warm(_subject(cuda_graphs=True))


def test_capture_that_fails_under_auto_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for a graph, so nobody is told that there is none; warnings are errors here."""
    subject = _subject(cuda_graphs="auto")

    def fail(*arguments: object) -> None:
        raise NotCapturable("this driver captures nothing")

    monkeypatch.setattr(whole_graph, "CudaGraph", fail)
    _call(subject, ROWS)
    assert _graphs(subject) == 0


def test_explanation_times_parts_of_a_captured_module() -> None:
    """explain() goes part by part, also where calls are one graph, and leaves the graph."""
    subject = _subject(cuda_graphs=True)
    _warm(subject)
    explanation = subject.module.explain(torch.randn(ROWS, WIDTH, device="cuda"))
    assert len(explanation.parts) == 3
    assert all(part.seconds > 0 for part in explanation.parts)
    _warm(subject)
