"""Modules that share their working memory: as much of it as the largest needs, and every answer to the last bit.

Enters: five engines of different sizes, called by turns from streams, threads and CUDA graphs. Leaves: proof that they
need one engine's memory and that no call overwrites what another one still reads. Separate from the tests of single
modules because here the order between modules counts.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu import scenarios
from tests.gpu.scenarios import CALLS, LONG_PAUSE, PAUSE, WIDTH, Engines, Subject, capturing, prepared_shapes
from torch2engine.deployed.trt.stream_executor import StreamExecutor

pytestmark = pytest.mark.xdist_group("shared memory")

ROWS = 2048
HIDDEN = (128, 2048, 512, 1024, 256)  # the largest one is neither first nor last
AXES = {"x": {0: t2e.Axis("n", 1, 256, ROWS)}}
GRAPHS: list[bool | str] = [False, "auto", True]


class Step(nn.Module):
    """(n, 64) -> (n, 64) through layers of some width, whose results lie in working memory."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        sizes = itertools.pairwise([WIDTH, hidden, hidden, hidden, WIDTH])
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x.sin() * 2)
        return x


class Pipeline:
    """Five engines and what each answers alone, with memory of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        sample = torch.randn(256, WIDTH, device="cuda")
        exported = [t2e.export(Step(hidden).cuda().eval(), sample, AXES) for hidden in HIDDEN]
        self.artifacts = [self._warm(t2e.build(one)) for one in exported]
        self.alone = self.modules(cuda_graphs=False)

    @staticmethod
    def _warm(artifact: t2e.EngineArtifact) -> t2e.EngineArtifact:
        module = t2e.TRTModule(artifact)
        module.warmup([{"n": rows} for rows in (1, 64, 100, 256, 1000, ROWS)])
        return module.compiled()

    def modules(self, **config: Any) -> list[t2e.TRTModule]:
        """One module for each engine; `config` is of RuntimeConfig."""
        runtime_config = t2e.RuntimeConfig(**config)
        return [t2e.TRTModule(artifact, runtime_config=runtime_config) for artifact in self.artifacts]

    def expected(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each engine answers alone, one after the other."""
        answers = run(self.alone, x)
        torch.cuda.synchronize()
        return answers


def run(modules: Sequence[t2e.TRTModule], x: torch.Tensor) -> list[torch.Tensor]:
    """The answer of each module to the answer of the one before, on the current stream."""
    answers: list[torch.Tensor] = []
    for module in modules:
        x = module(x)
        answers.append(x)
    return answers


def count_wrong(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> int:
    """The elements that are not the same bits; everything must have run."""
    return sum(int((one != other).sum()) for one, other in zip(got, wanted, strict=True))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline()


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


def _allocated_by(modules: Sequence[t2e.TRTModule], x: torch.Tensor) -> int:
    """Bytes of PyTorch's allocator that stay in use after a call of each module."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    run(modules, x)
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before


def test_five_engines_need_the_largest_ones_memory(pipeline: Pipeline, figure: Callable[[str, float], None]) -> None:
    """Measured by PyTorch's allocator: the largest one's working memory, where five alone need the sum."""
    x = torch.randn(ROWS, WIDTH, device="cuda")
    alone = pipeline.modules(cuda_graphs=False)
    allocated_alone = _allocated_by(alone, x)
    sizes = [module.memory_bytes for module in alone]
    shared = t2e.SharedMemory()
    together = pipeline.modules(cuda_graphs=False, shared_memory=shared)
    allocated_together = _allocated_by(together, x)
    figure("shared_memory.sum_bytes", sum(sizes))
    figure("shared_memory.largest_bytes", max(sizes))
    figure("shared_memory.allocated_alone_bytes", allocated_alone)
    figure("shared_memory.allocated_bytes", allocated_together)
    assert [module.memory_bytes for module in together] == [shared.memory_bytes] * len(HIDDEN)
    assert shared.memory_bytes == max(sizes) < 0.8 * sum(sizes)
    assert max(sizes) <= allocated_together <= max(sizes) + 2**21  # PyTorch's allocator gives whole blocks
    assert allocated_alone >= sum(sizes)
    assert count_wrong(run(together, x), pipeline.expected(x)) == 0


@pytest.mark.parametrize("graphs", GRAPHS)
def test_interleaved_calls_of_two_streams_are_exact(pipeline: Pipeline, graphs: bool | str) -> None:
    """Two busy streams run the pipeline by turns, module by module; each gets what the modules answer alone."""
    modules = pipeline.modules(cuda_graphs=graphs, shared_memory=t2e.SharedMemory())
    assert interleaved(pipeline, modules, [torch.cuda.Stream(), torch.cuda.Stream()]) == 0


@pytest.mark.parametrize("graphs", GRAPHS)
def test_interleaved_calls_of_every_kind_of_stream_are_exact(pipeline: Pipeline, graphs: bool | str) -> None:
    """The default stream, PyTorch's, other libraries' and blocking ones take turns in one memory."""
    modules = pipeline.modules(cuda_graphs=graphs, shared_memory=t2e.SharedMemory(), streams=2)
    assert interleaved(pipeline, modules, list(scenarios.streams().values())) == 0


def interleaved(
    pipeline: Pipeline, modules: Sequence[t2e.TRTModule], streams: Sequence[torch.cuda.Stream], pause: int = PAUSE
) -> int:
    """Wrong elements when all streams begin together and each module is called on every stream in turn."""
    inputs = [torch.randn(ROWS, WIDTH, device="cuda") for _ in streams]
    wanted = [pipeline.expected(x) for x in inputs]
    wrong = 0
    for _ in range(CALLS):
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(pause)
        got: list[list[torch.Tensor]] = [[] for _ in streams]
        for module in modules:
            for index, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    got[index].append(module(got[index][-1] if got[index] else inputs[index]))
        torch.cuda.synchronize()
        wrong += sum(count_wrong(*pair) for pair in zip(got, wanted, strict=True))
    return wrong


@pytest.mark.parametrize("graphs", GRAPHS)
def test_threads_at_all_sizes_are_exact(pipeline: Pipeline, graphs: bool | str) -> None:
    """Six threads on streams of their own, with growing sizes and few contexts."""
    assert wrong_in_threads(pipeline, graphs, trims=False) == [0] * 6


def test_threads_are_exact_while_modules_are_trimmed(pipeline: Pipeline) -> None:
    """One of the threads gives each module's share up now and then; the others' calls take it again."""
    assert wrong_in_threads(pipeline, False, trims=True) == [0] * 6


def wrong_in_threads(pipeline: Pipeline, graphs: bool | str, trims: bool) -> list[int]:
    """Wrong elements that each of six threads found."""
    shared = t2e.SharedMemory()
    modules = pipeline.modules(cuda_graphs=graphs, shared_memory=shared, streams=2, contexts=2)
    inputs = [torch.randn(rows, WIDTH, device="cuda") for rows in (1, 64, 100, 256, 1000, ROWS)]
    wanted = [pipeline.expected(x) for x in inputs]

    def wrong(seed: int) -> int:
        found = 0
        with torch.cuda.stream(torch.cuda.Stream() if seed else torch.cuda.default_stream()):
            for index in range(40):
                if trims and seed == 5 and index % 8 == 0:
                    modules[index // 8].trim()
                size = min(index // 6, (seed + index) % len(inputs))
                answers = run(modules, inputs[size])
                torch.cuda.current_stream().synchronize()
                found += count_wrong(answers, wanted[size])
        return found

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(wrong, range(6)))
    assert shared.memory_bytes > 0
    return counts


@pytest.mark.parametrize("graphs", ["auto", True])
def test_growth_by_one_module_renews_the_graphs_of_all(pipeline: Pipeline, graphs: bool | str) -> None:
    """Graphs contain the old address: they go when another module needs more, and come again at the new one."""
    shared = t2e.SharedMemory()
    modules = pipeline.modules(cuda_graphs=graphs, shared_memory=shared)
    small, large = (torch.randn(rows, WIDTH, device="cuda") for rows in (100, ROWS))
    wanted, wanted_large = pipeline.expected(small), pipeline.expected(large)
    for _ in range(2 * CALLS):
        assert count_wrong(run(modules, small), wanted) == 0
    assert all(_has_graphs(module) for module in modules)
    before = shared.memory_bytes
    answer = modules[1](large)
    assert shared.memory_bytes > before
    assert not any(_has_graphs(module) for module in modules)
    assert count_wrong([answer], [pipeline.alone[1](large)]) == 0
    for _ in range(2 * CALLS):
        assert count_wrong(run(modules, small), wanted) == 0
        assert count_wrong(run(modules, large), wanted_large) == 0
    assert all(_has_graphs(module) for module in modules)


def _has_graphs(module: t2e.TRTModule) -> bool:
    return any(len(one.graphs) > 0 for one in prepared_shapes(module))


def test_calls_in_a_graph_of_the_users_run_beside_others(pipeline: Pipeline) -> None:
    """A captured pipeline works in its graph's own memory, and is exact while the modules answer other streams."""
    modules = pipeline.modules(cuda_graphs=False, shared_memory=t2e.SharedMemory())
    x, other = (torch.randn(ROWS, WIDTH, device="cuda") for _ in range(2))
    wanted, wanted_other = pipeline.expected(x), pipeline.expected(other)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(modules, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, stream=side):
        captured = run(modules, x)
    for _ in range(CALLS):
        with torch.cuda.stream(side):
            torch.cuda._sleep(PAUSE)
            graph.replay()
        torch.cuda._sleep(PAUSE)
        answers = run(modules, other)
        torch.cuda.synchronize()
        assert (count_wrong(captured, wanted), count_wrong(answers, wanted_other)) == (0, 0)
    del captured, graph


def test_memory_is_freed_with_the_last_module(pipeline: Pipeline) -> None:
    """trim() and del give up a share; the memory goes with the last one, and comes again with the next call."""
    shared = t2e.SharedMemory()
    modules = pipeline.modules(shared_memory=shared)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    wanted = pipeline.expected(x)
    run(modules, x)
    size = shared.memory_bytes
    for module in modules[1:]:
        module.trim()
    assert shared.memory_bytes == size
    modules[0].trim()
    assert shared.memory_bytes == 0
    assert count_wrong(run(modules, x), wanted) == 0
    assert shared.memory_bytes == size
    modules, last = modules[:-1], modules[-1]
    del module, modules
    gc.collect()
    assert shared.memory_bytes == size
    assert count_wrong([last(wanted[-2])], wanted[-1:]) == 0
    del last
    gc.collect()
    assert shared.memory_bytes == 0


def test_module_may_be_collected_by_a_thread_that_has_its_turn(pipeline: Pipeline) -> None:
    """The garbage collector may end a module within another one's call: it needs no lock, and the others go on."""
    shared = t2e.SharedMemory()
    modules = pipeline.modules(shared_memory=shared)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    wanted = pipeline.expected(x)
    run(modules, x)
    last = modules.pop()
    session = last._backend.session
    assert session is not None
    memory = next(iter(session._executors.values())).order.memory
    del session
    with memory.lock:
        del modules
        gc.collect()
    assert shared.memory_bytes > 0
    assert count_wrong([last(wanted[-2])], wanted[-1:]) == 0
    del last
    gc.collect()
    assert shared.memory_bytes == 0


def test_copies_share_and_pipelines_apart_run_side_by_side(pipeline: Pipeline) -> None:
    """A deep copy works in the original's memory; two pipelines with two objects have no memory in common."""
    first, second = t2e.SharedMemory(), t2e.SharedMemory()
    modules = pipeline.modules(shared_memory=first)
    copies, others = copy.deepcopy(modules), pipeline.modules(shared_memory=second)
    x = torch.randn(ROWS, WIDTH, device="cuda")
    wanted = pipeline.expected(x)
    for group in (modules, copies, others):
        assert count_wrong(run(group, x), wanted) == 0
    sizes = [module.memory_bytes for module in (*modules, *copies, *others)]
    assert sizes == [first.memory_bytes] * 10 + [second.memory_bytes] * 5
    assert first.memory_bytes == second.memory_bytes


@pytest.mark.parametrize("graphs", [False, True], ids=["enqueued", "graphs"])
@pytest.mark.parametrize("kind", ["default", "pool"])
def test_callers_order_holds_in_shared_memory(engines: Engines, kind: str, graphs: bool) -> None:
    """Late writers, early readers, freed and overwritten inputs: as for modules with memory of their own."""
    shared = t2e.SharedMemory()
    stream = scenarios.streams()[kind]
    subjects = [engines.fresh(name, cuda_graphs=graphs, shared_memory=shared) for name in ("exact", "deep")]
    for scenario in (
        *(scenarios.delayed_producer, scenarios.early_consumer, scenarios.overwritten_input),
        *(scenarios.recycled_memory, scenarios.kept_results),
    ):
        assert [scenario(subject, stream) for subject in subjects] == [0, 0]


def test_refit_of_a_module_on_two_streams_ends() -> None:
    """Its executors and its neighbour's have one lock; the neighbour's answers stay the same."""
    torch.manual_seed(0)
    x = torch.randn(256, WIDTH, device="cuda")
    shared = t2e.SharedMemory()
    config = t2e.RuntimeConfig(shared_memory=shared)
    models = [Step(hidden).cuda().eval() for hidden in (128, 512)]
    modules = [
        t2e.deploy(model, x, AXES, cache=False, config=t2e.BuildConfig(refittable=True), runtime_config=config)
        for model in models
    ]
    subjects = [Subject(module, model, 1e-3) for module, model in zip(modules, models, strict=True)]
    before = modules[1](x)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert modules[0](x).shape == x.shape
    modules[0](x)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.mul_(0.9)
    modules[0].refit()
    assert [subject.wrong(subject.module(x), x) for subject in subjects] == [0, 0]
    assert torch.equal(modules[1](x), before)


@pytest.mark.parametrize("graphs", [False, True], ids=["enqueued", "graphs"])
def test_tests_of_order_can_fail(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """Without the wait for the stream before, modules that share memory overwrite each other's; with it they don't."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]

    def count() -> int:
        modules = pipeline.modules(cuda_graphs=graphs, shared_memory=t2e.SharedMemory())
        return interleaved(pipeline, modules, streams, LONG_PAUSE)

    with monkeypatch.context() as patch:
        patch.setattr(StreamExecutor, "_take_over", lambda *arguments: None)
        # Other processes use the GPU too, so not every race is lost.
        assert any(count() > 0 for _ in range(5))
    torch.cuda.synchronize()
    assert count() == 0
