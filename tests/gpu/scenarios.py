"""What callers do around a call, each as a function that counts the wrong elements of the answers.

Enters: a deployed module beside its model, and streams. Leaves: 0 if order and lifetimes were kept. Apart from the
tests because the same functions must find nothing while the order is kept, and something once it is taken away.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import Scale
from torch2engine.deployed.trt.stream_executor import PreparedTensors
from torch2engine.trt.gpu import load_driver

WIDTH = 64
ROWS = 2048
MOST_ROWS = 4096
CALLS = 10  # enough that CUDA graphs are in use
PAUSE = 20_000_000  # cycles, about 10 ms: far longer than it takes to enqueue a call
LONG_PAUSE = 200_000_000

AXES = {"x": {0: t2e.Axis("n", 1, 256, MOST_ROWS)}}


class Deep(nn.Module):
    """(n, 64) -> (n, 64) through layers of 1024: each call works in megabytes of memory for most of a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 1024)
        self.middle = nn.ModuleList(nn.Linear(1024, 1024) for _ in range(4))
        self.last = nn.Linear(1024, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        for layer in self.middle:
            x = layer(x).relu()
        return self.last(x)


class Subject(NamedTuple):
    """A deployed module, its model, and how far an answer may be off, as a part of the largest value."""

    module: t2e.TRTModule
    model: nn.Module
    tolerance: float

    def wrong(self, got: torch.Tensor, x: torch.Tensor) -> int:
        """The number of elements in which `got` is not the answer to `x`; everything must have run."""
        with torch.no_grad():
            wanted = self.model(x)
        assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
        near = (got - wanted).abs() <= self.tolerance * wanted.abs().max()
        return int((~near).sum())


def _warm(exported: t2e.OnnxArtifact) -> t2e.EngineArtifact:
    """The engine with its kernels compiled, so that tests of order don't spend their time on that."""
    module = t2e.TRTModule(t2e.build(exported))
    module.warmup([{"n": rows} for rows in (1, 2, 7, 64, 100, 256, 1000, ROWS, 2500, MOST_ROWS)])
    return module.compiled()


class Engines:
    """Two engines, built once: one exact, one that works in memory."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.models: dict[str, nn.Module] = {"exact": Scale(), "deep": Deep().cuda().eval()}
        sample = torch.randn(256, WIDTH, device="cuda")
        self.artifacts = {name: _warm(t2e.export(model, sample, AXES)) for name, model in self.models.items()}
        self._subjects: dict[tuple[Any, ...], Subject] = {}

    def fresh(self, name: str, **config: Any) -> Subject:
        """A module of its own; `config` is of RuntimeConfig."""
        module = t2e.TRTModule(self.artifacts[name], runtime_config=t2e.RuntimeConfig(**config))
        return Subject(module, self.models[name], 0.0 if name == "exact" else 1e-3)

    def subjects(self, **config: Any) -> list[Subject]:
        """One of each, shared by all who ask for the same configuration."""
        found: list[Subject] = []
        for name in self.models:
            key = (name, *sorted((field, str(value)) for field, value in config.items()))
            if key not in self._subjects:
                self._subjects[key] = self.fresh(name, **config)
            found.append(self._subjects[key])
        return found


def streams() -> dict[str, torch.cuda.Stream]:
    """One stream of every kind that a caller may be on."""
    torch.cuda.synchronize()  # makes the context, in which the driver makes streams
    return {
        "default": torch.cuda.default_stream(),
        "pool": torch.cuda.Stream(),
        "high priority": torch.cuda.Stream(priority=-1),
        "external": _external(1),  # CU_STREAM_NON_BLOCKING
        "blocking": _external(0),  # in step with the default stream, as cudaStreamCreate makes them
    }


def _external(flags: int) -> torch.cuda.Stream:
    handle = ctypes.c_void_p()
    status = load_driver().cuStreamCreate(ctypes.byref(handle), ctypes.c_uint(flags))
    assert status == 0 and handle.value
    return torch.cuda.ExternalStream(handle.value)


def delayed_producer(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """Each input is still to be written when the module is called."""
    x = torch.zeros(ROWS, WIDTH, device="cuda")
    wrong = 0
    for _ in range(CALLS):
        fresh = torch.randn_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(pause)
            x.copy_(fresh)
            result = subject.module(x)
        torch.cuda.synchronize()
        wrong += subject.wrong(result, fresh)
    return wrong


def early_consumer(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """Each result is read by the next kernel on the stream."""
    wrong = 0
    for _ in range(CALLS):
        x = torch.randn(ROWS, WIDTH, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(pause)
            taken = subject.module(x).clone()
        torch.cuda.synchronize()
        wrong += subject.wrong(taken, x)
    return wrong


def overwritten_input(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """Each input is overwritten by the next kernel on the stream."""
    x = torch.zeros(ROWS, WIDTH, device="cuda")
    wrong = 0
    for _ in range(CALLS):
        fresh = torch.randn_like(x)
        x.copy_(fresh)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(pause)
            result = subject.module(x)
            x.fill_(torch.nan)
        torch.cuda.synchronize()
        wrong += subject.wrong(result, fresh)
    return wrong


def recycled_memory(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """Each input, or the copy that a transposed one needs, is freed at once and its memory taken by others."""
    wrong = 0
    for index in range(2 * CALLS):
        fresh = torch.randn(ROWS, WIDTH, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            x = fresh.clone() if index % 2 else fresh.t().clone(memory_format=torch.contiguous_format).t()
            torch.cuda._sleep(pause)
            result = subject.module(x)
            del x
            rubbish = [torch.full((ROWS, WIDTH), torch.nan, device="cuda") for _ in range(3)]
        torch.cuda.synchronize()
        del rubbish
        wrong += subject.wrong(result, fresh)
    return wrong


def kept_results(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """All results are kept until the last call is through."""
    inputs = [torch.randn(ROWS, WIDTH, device="cuda") for _ in range(2 * CALLS)]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(pause)
        results = [subject.module(x) for x in inputs]
    torch.cuda.synchronize()
    assert len({result.data_ptr() for result in results}) == len(results)
    return sum(subject.wrong(result, x) for result, x in zip(results, inputs, strict=True))


def awkward_inputs(subject: Subject, stream: torch.cuda.Stream, pause: int = PAUSE) -> int:
    """Inputs that don't lie in memory as the engine reads it, each at a shape that came before as it should be."""
    flat = torch.randn(ROWS * WIDTH + 1, device="cuda")
    inputs = [
        torch.randn(WIDTH, ROWS, device="cuda").t(),
        torch.randn(2 * ROWS, WIDTH + 1, device="cuda")[::2, 1:],
        torch.randn(1, WIDTH, device="cuda").expand(ROWS, WIDTH),
        flat[1:].view(ROWS, WIDTH),
        torch.randn(ROWS, WIDTH, dtype=torch.complex64, device="cuda").conj().imag,
    ]
    assert inputs[3].data_ptr() % 256 and inputs[4].is_neg() and not any(x.is_contiguous() for x in inputs[:3])
    wrong = 0
    for x in inputs:
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(pause)
            plain = subject.module(x.contiguous())
            results = [subject.module(x) for _ in range(CALLS)]
        torch.cuda.synchronize()
        wrong += sum(subject.wrong(result, x) for result in (plain, *results))
    return wrong


def switched_streams(subject: Subject, callers: Sequence[torch.cuda.Stream], pause: int = PAUSE) -> int:
    """Every call is on another stream than the one before; first one stream is busy, then two, at last all."""
    inputs = [torch.randn(ROWS, WIDTH, device="cuda") for _ in callers]
    wrong = 0
    for busy in range(len(callers) + 1):  # the first round, on idle streams, makes contexts
        torch.cuda.synchronize()
        for stream in callers[:busy]:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(pause)
        results: list[list[torch.Tensor]] = []
        for _ in range(CALLS):
            results.append([])
            for stream, x in zip(callers, inputs, strict=True):
                with torch.cuda.stream(stream):
                    results[-1].append(subject.module(x))
        torch.cuda.synchronize()
        wrong += sum(subject.wrong(got, x) for row in results for got, x in zip(row, inputs, strict=True))
    return wrong


def run_together(works: Sequence[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first error of any of them is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, **options: Any) -> Generator[None]:
    """torch.cuda.graph without garbage: a graph of PyTorch's that is collected meanwhile would break the capture."""
    gc.collect()
    with torch.cuda.graph(graph, **options):
        yield


def prepared_shapes(module: t2e.TRTModule) -> list[PreparedTensors]:
    """All shapes that a module has prepared, on every stream."""
    assert module._backend.session is not None
    executors = module._backend.session._executors.values()
    return [prepared for executor in executors for prepared in executor.pool.prepared.values()]
