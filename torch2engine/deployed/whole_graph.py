"""The calls of a model in parts, or in PyTorch alone, as one CUDA graph for each set of shapes.

Enters: inputs on the caller's current stream, and what answers them part by part. Leaves: results, ready on that
stream. Separate because the parts need not know about this graph: they are captured as a user's own CUDA graph captures
them.

A graph answers only after a proof: its first replay gave what the same call gave part by part. The proof notices work
that a capture does not see, such as an operator that works on a stream of its own. PyTorch's `CUDAGraph` is not used,
since a capture that fails leaves the device's random generator unusable (torch 2.11); here no generator takes part.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import torch

from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.core.user_warning import warn_user
from torch2engine.core.wording import first_line
from torch2engine.deployed.module_access import keep_capture, release_capture
from torch2engine.deployed.torch_state import current_device, is_capturing, stream_handle
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.trt.cuda_graph import CudaGraph, DedicatedStream, NotCapturable, WorkEvent, collector_waits
from torch2engine.trt.cuda_graph_policy import CapturePolicy
from torch2engine.trt.gpu import find_capture_id, relaxed_capture_mode

__all__ = ["WholeGraphs"]

_logger = logging.getLogger(__name__)

_Shapes: TypeAlias = "tuple[torch.Size, ...]"
_Run: TypeAlias = "Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]"

# A capture needs two calls, and a context of every engine: as much time as hundreds of calls.
_CALLS_BEFORE = {True: 1, "auto": 7}
_MOST_GRAPHS = 8  # sets of shapes; each holds the memory of a whole call
_MOST_COUNTED = 256
# What a replay costs beside its kernels, on the host, and on the device for what it copies (H200).
_REPLAY_SECONDS = 20e-6
_TENSOR_SECONDS = 10e-6
_COPY_BYTES_PER_SECOND = 1e12
_RTOL = 1e-2  # an operator that adds in any order is not the same to the bit


@dataclass
class _History:
    """The calls at one set of shapes that were answered part by part."""

    calls: int = 0
    least_seconds: float = float("inf")  # that the host was busy with one


@dataclass(frozen=True)
class _WholeGraph:
    """One CUDA graph with its buffers: calls copy into `inputs`, and from `outputs`."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    graph: CudaGraph
    capture_id: int


@dataclass
class _Capture:
    """One attempt at a capture. `capture_id` is None until the driver has begun it."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    capture_id: int | None = None


class _Workplace:
    """What all graphs of a module share: they run one after the other.

    Args:
        device: which is the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.own = DedicatedStream()
        self.stream = torch.cuda.ExternalStream(self.own.handle, device)
        self.done = WorkEvent(device.index)
        self.pool = torch.cuda.MemPool()


class WholeGraphs:
    """The CUDA graphs of a model in parts. Threads and streams may share it; their replays follow each other.

    Args:
        device: a CUDA device with its index.
        config: how the module answers.
        engines: those of the parts; none where PyTorch runs the whole model.
        without: what calls are like where nothing can be captured, for a log and a warning.
    """

    def __init__(
        self,
        device: torch.device,
        config: RuntimeConfig,
        engines: Sequence[TRTModule[Any]] = (),
        without: str = "the parts of a PartsModule are no one CUDA graph, so calls go through them one by one",
    ) -> None:
        self.obstacle = ""  # why the last capture failed
        self._without = without
        self._device = device
        self._engines = engines
        self._policy = CapturePolicy(config.cuda_graphs)
        self._calls_before = _CALLS_BEFORE.get(config.cuda_graphs, 0)
        self._has_static_outputs = config.output == "static"
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._graphs: dict[_Shapes, _WholeGraph] = {}
        self._histories: dict[_Shapes, _History] = {}
        self._workplace: _Workplace | None = None
        self._captures_are_over = False
        self._is_over = False  # no graph is made or launched any more
        self._is_suspended = False  # nor now

    def answer(self, inputs: Sequence[torch.Tensor], run: _Run) -> list[torch.Tensor]:
        """Answer a call by a CUDA graph where there is one, else part by part; then perhaps capture it.

        Args:
            inputs: contiguous, in the signature's order and dtypes, on the device.
            run: answers part by part, on the current stream.

        Raises:
            Torch2EngineError: as `run`.
        """
        if self._is_over or os.getpid() != self._process:  # the engines refuse a fork
            return run(inputs)
        index = self._device.index
        if current_device() != index:
            with torch.cuda.device(self._device):
                return self.answer(inputs, run)
        handle = stream_handle(index)
        if handle and is_capturing():
            # A CUDA graph of the user's takes the contexts of the engines, which only calls part by part leave.
            self._is_over = bool(self._engines)
            return run(inputs)
        shapes = tuple([tensor.shape for tensor in inputs])
        if shapes in self._graphs:
            outputs = self._replay(shapes, inputs, handle)
            if outputs is not None:
                return outputs
        if self._captures_are_over or self._is_suspended:
            return run(inputs)
        history = self._history_of(shapes)
        start = perf_counter()
        outputs = run(inputs)
        now = perf_counter()
        history.calls += 1
        history.least_seconds = min(history.least_seconds, now - start)
        if history.calls > self._calls_before and self._pays(history, inputs, outputs) and self._may_capture(now):
            self._capture(shapes, inputs, run)
        return outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Answer a call by its CUDA graph; None where there is none, or a graph of the user's is being captured.

        Args:
            inputs: as for `answer`.
        """
        shapes = tuple([tensor.shape for tensor in inputs])
        if self._is_over or shapes not in self._graphs or os.getpid() != self._process:
            return None
        index = self._device.index
        if current_device() != index:
            with torch.cuda.device(self._device):
                return self.replay(inputs)
        handle = stream_handle(index)
        return None if handle and is_capturing() else self._replay(shapes, inputs, handle)

    def has_graph(self, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether a CUDA graph answers calls at the shapes of these inputs."""
        return not self._is_over and tuple([tensor.shape for tensor in inputs]) in self._graphs

    def _replay(self, shapes: _Shapes, inputs: Sequence[torch.Tensor], handle: int) -> list[torch.Tensor] | None:
        """Answer by a graph; None where it was dropped just now."""
        with self._lock:
            whole = self._graphs.get(shapes)
            workplace = self._workplace
            if whole is None or workplace is None or self._is_suspended:
                return None
            workplace.done.let_wait(handle)
            try:
                _copy(inputs, whole.inputs)
                whole.graph.launch(handle)
                return whole.outputs if self._has_static_outputs else [output.clone() for output in whole.outputs]
            except BuildError:
                self._is_over = True  # or every call would meet the broken graph
                raise
            finally:
                workplace.done.record(handle)

    # Which calls are captured.

    def _history_of(self, shapes: _Shapes) -> _History:
        history = self._histories.get(shapes)
        if history is None:
            if len(self._histories) >= _MOST_COUNTED:
                self._histories = {}
            history = self._histories[shapes] = _History()
        return history

    def _pays(self, history: _History, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
        """Whether a replay with its copies takes the host less time than a call part by part."""
        if self._policy.is_forced:
            return True
        tensors = (*inputs, *outputs)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        seconds = _REPLAY_SECONDS + len(tensors) * _TENSOR_SECONDS + size / _COPY_BYTES_PER_SECOND
        return history.least_seconds > seconds

    def _may_capture(self, now: float) -> bool:
        return len(self._graphs) < _MOST_GRAPHS and self._policy.check_threads(now)

    # The capture.

    def _capture(self, shapes: _Shapes, inputs: Sequence[torch.Tensor], run: _Run) -> None:
        """Capture a call, and prove the graph. After a failure, no other call is captured."""
        reason = ""
        with self._lock:
            if self._captures_are_over or self._is_over or self._is_suspended or shapes in self._graphs:
                return
            try:
                self._workplace = self._workplace or _Workplace(self._device)
                self._graphs[shapes] = self._proved(inputs, run, self._workplace)
            except (NotCapturable, Torch2EngineError, RuntimeError) as error:  # the last kind is torch's
                self._captures_are_over = True
                reason = first_line(error)
        if not reason:
            return
        self.obstacle = reason
        text = f"{self._without}: {reason}"
        _logger.info(text)
        if self._policy.is_forced:
            warn_user(f"{text}; RuntimeConfig(cuda_graphs='auto') tries fewer operators, and says nothing")

    def _proved(self, inputs: Sequence[torch.Tensor], run: _Run, workplace: _Workplace) -> _WholeGraph:
        """Make a graph whose first replay gave what the call gives.

        Raises:
            NotCapturable: there is none.
        """
        stream = workplace.stream
        stream.wait_stream(torch.cuda.current_stream(self._device))
        workplace.done.let_wait(workplace.own.handle)  # the graphs share their memory
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.stream(stream):
            capture = _Capture([torch.empty_like(given, memory_format=torch.contiguous_format) for given in inputs])
            _copy(inputs, capture.inputs)
            expected = run(capture.inputs)  # on this stream, so that contexts and PyTorch's workspaces are there
            for buffer in capture.inputs:
                buffer.zero_()  # what runs now instead of in replays computes something else than `expected`
            stream.synchronize()
            try:
                graph = self._captured(capture, run, workplace)
                _copy(inputs, capture.inputs)
                graph.launch(workplace.own.handle)
                workplace.done.record(workplace.own.handle)
                if not all(map(_agree, capture.outputs, expected)):
                    raise NotCapturable("a replay did not repeat the call, so an operator does more than kernels")
            except BaseException:
                self._forget(capture, workplace)
                raise
        assert capture.capture_id is not None, "it has succeeded"
        return _WholeGraph(capture.inputs, capture.outputs, graph, capture.capture_id)

    def _captured(self, capture: _Capture, run: _Run, workplace: _Workplace) -> CudaGraph:
        """Capture the call of the buffers; memory that it takes is in a pool, which nothing else takes it from."""
        handle = workplace.own.handle

        def enqueue(stream: int) -> None:
            capture.capture_id = find_capture_id(stream)
            try:
                capture.outputs = run(capture.inputs)
            except (Torch2EngineError, RuntimeError):
                raise
            except Exception as error:  # an operator of the user's may raise anything
                raise NotCapturable(f"{type(error).__name__}: {error}") from error

        try:
            with collector_waits(), torch.cuda.use_mem_pool(workplace.pool, self._device):
                return CudaGraph(enqueue, handle, 0, self._device.index)
        finally:
            if capture.capture_id is not None:
                for engine in self._engines:
                    keep_capture(engine, capture.capture_id, handle, workplace.done.synchronize)

    def _forget(self, capture: _Capture, workplace: _Workplace) -> None:
        """Leave engines and PyTorch as they were before a capture that failed."""
        capture.outputs = []
        if capture.capture_id is not None:
            for engine in self._engines:
                release_capture(engine, capture.capture_id)
        with suppress(RuntimeError):  # the error of a library that nobody asked for would be that of the next kernel
            torch.zeros(1, device=self._device).add_(1)

    # The end of graphs.

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Drop all graphs, and answer part by part during the body, such as a refit."""
        if os.getpid() != self._process:
            yield  # the engines refuse a fork
            return
        with self._lock:
            self._is_suspended = True
            self._drop()
        try:
            yield
        finally:
            self._is_suspended = False

    def _drop(self) -> None:
        """Wait for the graphs' work and let go of them, and of the engines' contexts in them."""
        if self._workplace is None:
            return
        with torch.cuda.device(self._device), relaxed_capture_mode():
            self._workplace.done.synchronize()
            for whole in self._graphs.values():
                for engine in self._engines:
                    release_capture(engine, whole.capture_id)
            self._graphs = {}
            self._histories = {}
            self._workplace = None

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        if is_finalizing() or self._workplace is None or os.getpid() != self._process:
            return
        with torch.cuda.device(self._device), relaxed_capture_mode():
            self._workplace.done.synchronize()  # the buffers go back to PyTorch, which does not know who reads them
            self._graphs.clear()
            self._workplace = None


def _copy(tensors: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor]) -> None:
    for given, buffer in zip(tensors, buffers, strict=True):
        buffer.copy_(given)


def _agree(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a replayed result is that of the call, but for the rounding of sums in another order."""
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    if not (got.is_floating_point() or got.is_complex()):
        return torch.equal(got, expected)
    one, other = (torch.view_as_real(each) if each.is_complex() else each.float() for each in (got, expected))
    finite = other[other.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=_RTOL, atol=_RTOL * largest, equal_nan=True)
