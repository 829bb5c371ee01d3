"""`serving.processor.array_stream_executor` with host memory as device, and an engine that doubles its input."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

import torch2engine as t2e
from torch2engine.core.spec import TensorSpec
from torch2engine.serving.processor import array_stream_executor
from torch2engine.serving.processor.array_stream_executor import ArrayStreamExecutor, InitialBytes
from torch2engine.serving.processor.arrays import CheckedCall
from torch2engine.serving.processor.cuda import Cuda
from torch2engine.serving.processor.staging import PendingCall, StagingBuffers, make_layout
from torch2engine.trt.context import DataDependentOutput
from torch2engine.trt.cuda_graph import NotCapturable
from torch2engine.trt.engine import Engine

Floats = npt.NDArray[np.float32]


def bytes_at(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Host memory as an array."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class FakeMemory:
    """Host memory that plays device memory."""

    def __init__(self, size_bytes: int) -> None:
        self.array = np.zeros(max(size_bytes, 1), np.uint8)
        self.address = self.array.ctypes.data
        self.size_bytes = size_bytes


class FakeStream:
    """A stream whose work is done at once."""

    handle = 7

    def __init__(self, log: list[Any]) -> None:
        self._log = log

    def wait(self) -> None:
        self._log.append("wait")


class FakeEvent:
    """An event that notes when it is recorded."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log

    def record(self, stream: FakeStream) -> None:
        self._log.append(self)


class FakeCuda:
    """A device without a GPU; `copies` has the bytes of every copy out, `log` the order of work and events."""

    index = 0

    def __init__(self) -> None:
        self.copies: list[int] = []
        self.allocated: list[int] = []
        self.memories: weakref.WeakSet[FakeMemory] = weakref.WeakSet()
        self.log: list[Any] = []
        self.page_locked: list[Any] = []

    def stream(self) -> FakeStream:
        return FakeStream(self.log)

    def event(self, blocking: bool = False) -> FakeEvent:
        return FakeEvent(self.log)

    def memory(self, size_bytes: int) -> FakeMemory:
        self.allocated.append(size_bytes)
        memory = FakeMemory(size_bytes)
        self.memories.add(memory)
        return memory

    def pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(size_bytes, np.uint8)

    def is_pinned(self, array: Any) -> bool:
        return any(array is one for one in self.page_locked)

    def copy_in(self, address: int, source: npt.NDArray[np.uint8], stream: FakeStream) -> None:
        self.log.append("copy in")
        bytes_at(address, source.nbytes)[:] = source

    def copy_out(self, target: npt.NDArray[np.uint8], address: int, stream: FakeStream) -> None:
        self.log.append("copy out")
        self.copies.append(target.nbytes)
        target[:] = bytes_at(address, target.nbytes)


class FakeContext:
    """y = 2 x, float32; further outputs are 3 x, 4 x and so on, and further inputs of one shape are added to each."""

    is_worn = False

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shape: tuple[int, ...] = ()
        self._inputs = 0
        self._addresses: Sequence[int] = ()
        self._on_demand: Callable[[], None] | None = None

    def set_shapes(self, profile: int, shapes: Sequence[Sequence[int]], stream: int) -> list[tuple[int, ...]]:
        self._shape = tuple(shapes[0])
        self._inputs = len(shapes)
        made = (-1, *self._shape[1:]) if self._engine.is_data_dependent else self._shape
        return [made] * len(self._engine.outputs)

    def memory_bytes(self) -> int:
        return 16

    def set_memory(self, address: int, size_bytes: int) -> None:
        assert address and size_bytes >= 16

    def why_not_capturable(self, stream: int) -> str:
        return self._engine.refusal

    def bind(self, addresses: Sequence[int]) -> None:
        self._addresses = list(addresses)

    def allocate_on_demand(
        self, names: Sequence[str], allocate: Callable[[int], FakeMemory]
    ) -> dict[str, DataDependentOutput[FakeMemory]]:
        output: DataDependentOutput[FakeMemory] = DataDependentOutput()

        def ask() -> None:
            try:
                output.memory = allocate(int(np.prod(self._shape)) * 4)
            except MemoryError as error:
                output.error = error
                return
            output.shape = self._shape
            self._addresses = [*self._addresses[: self._inputs], output.memory.address]

        self._on_demand = ask
        return {names[0]: output}

    def enqueue(self, stream: int) -> None:
        assert stream == FakeStream.handle
        self._engine.log.append("run")
        if self._on_demand is not None:
            before = self._addresses
            self._on_demand()
            if self._addresses is before:
                raise t2e.BuildError("enqueue", got="planted")
        size = int(np.prod(self._shape)) * 4
        x, *others = (bytes_at(address, size).view(np.float32) for address in self._addresses[: self._inputs])
        for factor, address in enumerate(self._addresses[self._inputs :], 2):
            bytes_at(address, size).view(np.float32)[:] = x * factor + sum(others)


class FakeEngine:
    """Makes contexts, and counts what they do."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self.outputs = tuple(TensorSpec(name, "float32", ("n", 8)) for name in outputs)
        self.is_data_dependent = False
        self.refusal = ""
        self.log: list[Any] = []
        self.contexts = 0

    def make_context(self) -> FakeContext:
        self.contexts += 1
        return FakeContext(self)

    def memory_bytes(self, profile: int) -> int:
        return 16


class FakeGraph:
    """A CUDA graph that enqueues anew at each launch."""

    launches = 0

    def __init__(self, enqueue: Callable[[int], None], stream: int) -> None:
        self._enqueue = enqueue
        self._stream = stream

    def launch(self, stream: int) -> None:
        FakeGraph.launches += 1
        self._enqueue(self._stream)


def capture(context: Any, addresses: Sequence[int], stream: int, event: int, gpu_index: int) -> FakeGraph:
    """What `capture_inference` does, without a driver."""
    if reason := context.why_not_capturable(stream):
        raise NotCapturable(reason)
    context.bind(addresses)
    return FakeGraph(context.enqueue, stream)


class Bench:
    """An executor with its fakes."""

    def __init__(self, allocation: str = "reuse", outputs: Sequence[str] = ("y",), **config: Any) -> None:
        self.engine = FakeEngine(outputs)
        self.cuda = FakeCuda()
        self.engine.log = self.cuda.log
        self.executor = ArrayStreamExecutor(
            cast("Engine", self.engine),
            cast("Cuda", self.cuda),
            t2e.RuntimeConfig(**config),
            allocation,
            InitialBytes(),
        )

    def call(self, x: Floats, out: dict[str, Any] | None = None) -> Floats:
        """One call from start to end, with its only result."""
        (result,) = self.results([x], out)
        return result

    def results(
        self, arrays: Sequence[Floats], out: dict[str, Any] | None = None, direct: Sequence[int] = ()
    ) -> list[Floats]:
        """One call from start to end; `direct` are the inputs that are not staged."""
        cuda = cast("Cuda", self.cuda)
        self.staging = staging = StagingBuffers(cuda, blocking=False)
        inputs = make_layout([array.nbytes for array in arrays])
        staging.reserve(inputs.total, 0)
        for index, (offset, array) in enumerate(zip(inputs.offsets, arrays, strict=True)):
            if index not in direct:
                staging.inputs[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        checked = CheckedCall(tuple(arrays), tuple(array.shape for array in arrays), 0)
        pending = PendingCall(checked, staging, out or {}, perf_counter(), inputs, frozenset(direct))
        with self.executor.lock:
            self.executor.run(pending)
        found: list[Floats] = []
        for result in pending.results:
            staged = result.target if result.staged is None else result.staged.view(np.float32).reshape(result.shape)
            assert staged is not None
            found.append(staged)
        return found


def rows(count: int) -> Floats:
    """An input of so many rows."""
    return np.arange(count * 8, dtype=np.float32).reshape(count, 8)


@pytest.mark.parametrize("allocation", ["max", "reuse", "exact"])
@pytest.mark.parametrize("is_data_dependent", [False, True])
@pytest.mark.parametrize("graphs", [True, False])
def test_calls_of_many_shapes_are_right(
    monkeypatch: pytest.MonkeyPatch, allocation: str, is_data_dependent: bool, graphs: bool
) -> None:
    """Copies in, the inference and copies out are in order, whatever memory and graphs are used."""
    monkeypatch.setattr(array_stream_executor, "capture_inference", capture)
    monkeypatch.setattr(FakeGraph, "launches", 0)
    bench = Bench(allocation, cuda_graphs=graphs, contexts=2, max_shapes=3)
    bench.engine.is_data_dependent = is_data_dependent
    for count in (3, 3, 3, 70, 3, 3, 1, 2, 4, 3, 3, 3, 70):
        assert np.array_equal(bench.call(rows(count)), rows(count) * 2)
    assert (FakeGraph.launches > 0) is (graphs and not is_data_dependent and allocation != "exact")
    bench.executor.close()
    with pytest.raises(t2e.InputError, match="a call after close"):
        bench.call(rows(3))


@pytest.mark.parametrize("allocation", ["max", "reuse", "exact"])
def test_outputs_lie_beside_each_other(allocation: str) -> None:
    """Each has its own place, in a larger call and in a smaller one after it, staged or in the caller's array."""
    bench = Bench(allocation, ("y", "z", "w"), cuda_graphs=False)
    for count in (70, 3):
        z = np.zeros((count, 8), np.float32)
        bench.cuda.page_locked.append(z)
        found = bench.results([rows(count)], {"z": z})
        assert all(np.array_equal(one, factor * rows(count)) for factor, one in enumerate(found, 2))
        assert (len(found), found[1] is z) == (3, True)


@pytest.mark.parametrize("direct", [(), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_inputs_lie_beside_each_other(direct: Sequence[int]) -> None:
    """Each is read from its own place, whether it was staged or is page-locked itself."""
    bench = Bench(cuda_graphs=False)
    for count in (70, 3):
        x = rows(count)
        (found,) = bench.results([x, 10 * x, 100 * x], direct=direct)
        assert np.array_equal(found, 112 * x)


def test_memory_grows_by_half_where_calls_grow_by_a_row() -> None:
    """Few allocations, since each ends all CUDA graphs; and none is larger than half beyond what is needed."""
    bench = Bench(cuda_graphs=False)
    for count in range(1, 250):
        bench.call(rows(count))
        assert max(bench.cuda.allocated) <= 1.5 * count * 8 * 4 + 256
    assert len(bench.cuda.allocated) < 50


def test_events_frame_the_parts_of_a_call() -> None:
    """Timings are the times between them, and the last one says that the caller's arrays are free."""
    bench = Bench(cuda_graphs=False)
    bench.call(rows(3))
    bench.cuda.log.clear()
    bench.call(rows(3))
    at = bench.staging
    assert bench.cuda.log == [at.begun, "copy in", at.ready, "run", at.computed, "copy out", at.done]


@pytest.mark.parametrize("is_data_dependent", [False, True])
def test_closed_executor_has_waited_and_holds_no_memory(is_data_dependent: bool) -> None:
    """Running work ends first; closing again is nothing."""
    bench = Bench(cuda_graphs=False)
    bench.engine.is_data_dependent = is_data_dependent
    bench.call(rows(3))
    bench.cuda.log.clear()
    bench.executor.close()
    assert bench.cuda.log[:1] == ["wait"]
    assert sum(memory.size_bytes for memory in bench.cuda.memories) == 0


def test_call_that_fails_waits_for_what_it_has_begun_and_loses_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's arrays are free when the error comes, and a context that failed is not used again."""
    bench = Bench(cuda_graphs=False)
    bench.call(rows(3))

    def fail(*_: Any) -> None:
        raise t2e.BuildError("enqueue", got="planted")

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "enqueue", fail)
        with pytest.raises(t2e.BuildError, match="planted"):
            bench.call(rows(3))
    assert bench.cuda.log[-1] == "wait"
    assert np.array_equal(bench.call(rows(3)), rows(3) * 2)
    assert bench.engine.contexts == 2


@pytest.mark.parametrize("is_data_dependent", [False, True])
def test_results_go_to_the_callers_arrays(is_data_dependent: bool) -> None:
    """Page-locked contiguous arrays are copied to directly, other ones are staged, and wrong ones are refused."""
    bench = Bench(cuda_graphs=False)
    bench.engine.is_data_dependent = is_data_dependent
    locked = np.zeros((5, 8), np.float32)
    bench.cuda.page_locked.append(locked)
    assert bench.call(rows(5), {"y": locked}) is locked
    assert np.array_equal(locked, rows(5) * 2)
    pageable = np.zeros((5, 8), np.float32)
    assert np.array_equal(bench.call(rows(5), {"y": pageable}), rows(5) * 2)
    assert not pageable.any()  # The session copies it later.
    with pytest.raises(t2e.ShapeError, match=r"got shape \[5, 8\]; expected \[6, 8\]"):
        bench.call(rows(6), {"y": locked})
    assert bench.cuda.copies == [160, 160]
    assert np.array_equal(bench.call(rows(6)), rows(6) * 2)


def test_refused_captures_end_after_three_attempts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each refusal costs a context, every answer is right, and one warning says why."""
    monkeypatch.setattr(array_stream_executor, "capture_inference", capture)
    bench = Bench(cuda_graphs=True)
    bench.engine.refusal = "planted reason"
    for _ in range(9):
        assert np.array_equal(bench.call(rows(3)), rows(3) * 2)
    assert bench.engine.contexts == 4
    assert [record.getMessage() for record in caplog.records] == [
        "Processor answers without CUDA graphs from now on: planted reason"
    ]


def test_allocation_that_fails_is_the_calls_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator raised is raised, not TensorRT's complaint about it, and the next call is right."""
    bench = Bench(cuda_graphs=False)
    bench.engine.is_data_dependent = True
    assert np.array_equal(bench.call(rows(3)), rows(3) * 2)

    def refuse(size_bytes: int) -> Any:
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(bench.executor, "_make_output_allocator", lambda: refuse)
        with pytest.raises(MemoryError, match="planted"):
            bench.call(rows(3))
    assert np.array_equal(bench.call(rows(3)), rows(3) * 2)
    assert bench.engine.contexts == 2
