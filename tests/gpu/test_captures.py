"""The user's CUDA graphs: with the module in them, and captured beside it.

Enters: captures. Leaves: proof that a replayed answer is the plain one, and that calls break no capture.
Apart from the module's own graphs because here somebody else decides what is captured and when it runs.
"""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.gpu.scenarios import CALLS, PAUSE, ROWS, WIDTH, Engines, Subject, capturing, run_together
from torch2engine.trt import live_engines
from torch2engine.trt.bindings import CallLock

pytestmark = pytest.mark.xdist_group("captures")

WAYS = pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


def _captured(module: t2e.TRTModule, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph that is one call; if the module asks for a call before it, as it says in the error, it gets one."""
    graph = torch.cuda.CUDAGraph()
    if (result := _capture(graph, module, x)) is None:
        module(x)
        graph = torch.cuda.CUDAGraph()
        result = _capture(graph, module, x)
    assert result is not None
    return graph, result


def _capture(graph: torch.cuda.CUDAGraph, module: t2e.TRTModule, x: torch.Tensor) -> torch.Tensor | None:
    """Capture x += 1 and a call; None if the call is refused because no ordinary call prepared it."""
    texts: list[str] = []
    with capturing(graph):
        x.add_(1)  # an empty graph would warn
        try:
            return module(x)
        except t2e.InputError as error:
            texts.append(str(error))
    assert "call the module once with these shapes right before the capture" in texts[0]
    return None


def _warm(module: t2e.TRTModule, *inputs: torch.Tensor) -> None:
    """Call a module on a side stream, as PyTorch's documentation asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            for x in inputs:
                module(x)
    torch.cuda.current_stream().wait_stream(stream)


@WAYS
def test_pitfall_33_module_works_in_a_users_graph(engines: Engines, graphs: bool | str) -> None:
    """Replays answer what is in the input now, while calls of the same module run on other streams at any shape."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.default_stream()]
    for subject in engines.subjects(cuda_graphs=graphs):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        _warm(subject.module, x)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph):
            captured = subject.module(x)
        wrong = 0
        for index in range(2 * CALLS):
            fresh = torch.randn_like(x)
            others = [torch.randn(rows, WIDTH, device="cuda") for rows in (ROWS, 1 + 37 * index, ROWS)]
            torch.cuda.synchronize()
            for stream in streams:
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(PAUSE)
            results: list[tuple[torch.Tensor, torch.Tensor]] = []
            for _ in range(3):
                with torch.cuda.stream(streams[0]):
                    x.copy_(fresh)
                    graph.replay()
                    results.append((captured.clone(), fresh))
                    x.fill_(torch.nan)
                for stream in streams[1:]:
                    with torch.cuda.stream(stream):
                        results += [(subject.module(other), other) for other in others]
            torch.cuda.synchronize()
            wrong += sum(subject.wrong(got, given) for got, given in results)
        assert wrong == 0


@WAYS
def test_users_graphs_of_one_shape_run_at_the_same_time(engines: Engines, graphs: bool | str) -> None:
    """Three captures of one module at one shape, replayed on three streams at once, don't disturb each other."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    for subject in engines.subjects(cuda_graphs=graphs):
        inputs = [torch.randn(ROWS, WIDTH, device="cuda") for _ in streams]
        subject.module(inputs[0])
        captures = [_captured(subject.module, x) for x in inputs]
        wrong = 0
        for _ in range(CALLS):
            for x in inputs:
                x.normal_()
            torch.cuda.synchronize()
            for stream in streams:
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(PAUSE)
            for _ in range(CALLS):
                for stream, (graph, _) in zip(streams, captures, strict=True):
                    with torch.cuda.stream(stream):
                        graph.replay()  # each adds 1 to its input
            torch.cuda.synchronize()
            wrong += sum(subject.wrong(got, x) for x, (_, got) in zip(inputs, captures, strict=True))
        assert wrong == 0


@WAYS
def test_users_graph_may_hold_several_calls(engines: Engines, graphs: bool | str) -> None:
    """One graph holds a call on another's result, and a call at another shape on a branch of its own."""
    for subject in engines.subjects(cuda_graphs=graphs):
        x, y = torch.randn(64, WIDTH, device="cuda"), torch.randn(100, WIDTH, device="cuda")
        _warm(subject.module, x, y)
        graph, branch = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with capturing(graph):
            branch.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(branch):
                aside = subject.module(y)
            once = subject.module(x)
            twice = subject.module(once)
            torch.cuda.current_stream().wait_stream(branch)
        for _ in range(CALLS):
            x.normal_()
            y.normal_()
            graph.replay()
            assert [subject.wrong(aside, y), subject.wrong(once, x), subject.wrong(twice, once)] == [0, 0, 0]


@WAYS
def test_pitfall_33_capture_at_new_shapes_is_refused(engines: Engines, graphs: bool | str) -> None:
    """A call that nothing prepared is a typed error; the capture goes on without it, and the next one with it."""
    subject = engines.fresh("exact", cuda_graphs=graphs)
    subject.module(torch.randn(16, WIDTH, device="cuda"))
    _check_refused(subject, torch.randn(9, WIDTH, device="cuda"))


def test_pitfall_33_capture_before_the_first_call_is_refused(engines: Engines) -> None:
    """A module without a live engine does not start one inside a capture, which is whole afterwards."""
    subject = engines.fresh("exact")
    _check_refused(subject, torch.randn(9, WIDTH, device="cuda"))


def _check_refused(subject: Subject, x: torch.Tensor) -> None:
    before = x.clone()
    graph = torch.cuda.CUDAGraph()
    assert _capture(graph, subject.module, x) is None
    graph.replay()
    assert torch.equal(x, before + 1)
    assert torch.equal(subject.module(x), x * 2)
    graph, result = _captured(subject.module, x)
    x.normal_()
    graph.replay()
    assert torch.equal(result, x * 2)


@pytest.mark.parametrize("rows", [9, 5000], ids=["new shape", "out of range"])
def test_capture_that_a_refusal_ends_harms_nothing(engines: Engines, rows: int) -> None:
    """An error that leaves torch.cuda.graph by its own way ends that capture; calls and captures go on."""
    subject = engines.fresh("exact")
    x = torch.randn(64, WIDTH, device="cuda")
    subject.module(x)

    def capture() -> None:
        with capturing(torch.cuda.CUDAGraph()):
            x.add_(1)
            subject.module(torch.empty(rows, WIDTH, device="cuda"))

    with pytest.raises(t2e.InputError):
        capture()
    assert torch.equal(subject.module(x), x * 2)
    graph, result = _captured(subject.module, x)
    x.normal_()
    graph.replay()
    assert torch.equal(result, x * 2)


@WAYS
def test_threads_call_while_another_captures(engines: Engines, graphs: bool | str) -> None:
    """Three threads go on calling, at shapes they know, while a fourth captures graphs of its own work."""
    subject = engines.fresh("deep", cuda_graphs=graphs)
    # Drawn beforehand: while PyTorch captures, its random generator belongs to the capture.
    inputs = [[torch.randn(1 + 50 * index + seed, WIDTH, device="cuda") for index in range(10)] for seed in range(3)]
    base = torch.randn(1000, device="cuda")
    torch.cuda.synchronize()
    wrong: list[int] = []
    captures: list[bool] = []
    start = threading.Barrier(4, timeout=120)
    done = threading.Event()

    def call(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for x in inputs[seed]:
                subject.module(x)
            start.wait()
            while not done.is_set():
                wrong.extend(subject.wrong(subject.module(x), x) for x in inputs[seed])

    def capture() -> None:
        try:
            start.wait()
            with torch.cuda.stream(torch.cuda.Stream()):
                for index in range(40):
                    graph = torch.cuda.CUDAGraph()
                    graph.capture_begin(capture_error_mode="thread_local")
                    result = base * index + 1
                    graph.capture_end()
                    graph.replay()
                    captures.append(torch.equal(result, base * index + 1))
        finally:
            done.set()

    run_together([*(functools.partial(call, seed) for seed in range(3)), capture])
    assert captures == [True] * 40
    assert len(wrong) >= 3 * 10
    assert sum(wrong) == 0


def _thread(job: Callable[[], None]) -> None:
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is made now has an engine of its own, which ends with it."""
    monkeypatch.setattr(live_engines, "_engines", live_engines.LiveObjects())


@WAYS
@pytest.mark.usefixtures("unshared")
@pytest.mark.parametrize("way", ["dropped", "by another thread", "in a cycle"])
def test_module_that_goes_during_a_capture_leaves_it_alone(engines: Engines, way: str, graphs: bool | str) -> None:
    """A module that ends while the user captures breaks nothing, whoever lets go of it, and is gone at once."""
    x = torch.randn(64, WIDTH, device="cuda")
    goes: list[Any] = [engines.fresh("deep", cuda_graphs=graphs).module]
    for _ in range(4):
        goes[0](x)
    engine = weakref.ref(goes[0]._backend.session.engine)
    if way == "in a cycle":
        goes.append(goes)
    graph, count = torch.cuda.CUDAGraph(), torch.zeros((), device="cuda")
    torch.cuda.synchronize()
    with capturing(graph):
        count.add_(1)
        if way == "by another thread":
            _thread(goes.clear)
        elif way == "dropped":
            goes.clear()
        else:
            del goes
            gc.collect()
        count.add_(1)
    graph.replay()
    assert float(count) == 2
    assert engine() is None


@pytest.mark.usefixtures("unshared")
def test_module_in_a_cycle_ends_in_order(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector ends no context amid its work, and no engine before its contexts."""
    module = engines.fresh("deep").module
    cycle: list[Any] = [module]
    cycle.append(cycle)
    for rows in (3, 64):
        module(torch.randn(rows, WIDTH, device="cuda"))
    torch.cuda._sleep(200_000_000)
    module(torch.randn(64, WIDTH, device="cuda"))
    done = torch.cuda.Event()
    done.record()
    ended: list[tuple[str, bool]] = []
    retire = CallLock.release_when_idle

    def watched(running: CallLock, objects: dict[str, Any]) -> None:
        ended.append((next(iter(objects)), done.query()))
        retire(running, objects)

    monkeypatch.setattr(CallLock, "release_when_idle", watched)
    assert not done.query()
    del module, cycle
    gc.collect()
    assert ended == [("context", True), ("context", True), ("_config", True)]
