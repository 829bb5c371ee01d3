"""One stream of a Processor: contexts, device memory, and every step of a call in its order.

Enters: staged inputs. Leaves: copies in, the inference and copies out, enqueued one after the other on one stream.
Separate because the session uses several executors at once. They share no memory that is written to, so one copies
while another one computes. Each uses its own memory again without a wait for the GPU, since its stream keeps the order.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError, InputError
from torch2engine.serving.processor.arrays import Shape, check_out_array, numpy_dtype
from torch2engine.serving.processor.cuda import Bytes, Cuda, Memory, Stream
from torch2engine.serving.processor.staging import Layout, PendingCall, Result, as_bytes, make_layout
from torch2engine.trt.context import Context, DataDependentOutput
from torch2engine.trt.context_pool import ContextPool, PreparedShape
from torch2engine.trt.cuda_graph import CudaGraph, NotCapturable, capture_inference
from torch2engine.trt.cuda_graph_policy import CapturePolicy
from torch2engine.trt.engine import Engine
from torch2engine.trt.working_memory import WorkingMemory

__all__ = ["ArrayStreamExecutor", "InitialBytes", "closed_error"]

_logger = logging.getLogger("torch2engine.runtime")


def closed_error() -> InputError:
    """The error of a call that comes too late."""
    return InputError("Processor", got="a call after close()", allowed="calls before it", fix="make another Processor")


@dataclass(frozen=True)
class InitialBytes:
    """The bytes of memory for inputs and for outputs that an executor begins with."""

    inputs: int = 0
    outputs: int = 0


class _OutputLayout:
    """The outputs of one prepared shape: their shapes, and their places in one piece of memory."""

    def __init__(self, dtypes: Sequence[np.dtype[np.generic]]) -> None:
        self.shapes: list[Shape] = []  # none before the first context
        self.layout: Layout = make_layout(())
        self.data_dependent: list[int] = []  # outputs whose shapes only their values decide
        self._dtypes = dtypes

    def set_shapes(self, shapes: Sequence[Shape]) -> None:
        """Take the shapes that TensorRT gives; -1 stands for a dimension that only values decide."""
        self.shapes = list(shapes)
        self.data_dependent = [index for index, shape in enumerate(shapes) if min(shape, default=0) < 0]
        counts = [0 if index in self.data_dependent else math.prod(shape) for index, shape in enumerate(shapes)]
        self.layout = make_layout([count * dtype.itemsize for count, dtype in zip(counts, self._dtypes, strict=True)])

    def reset(self) -> None:
        """Nothing here belongs to a context."""


class _OneGraph:
    """The CUDA graph of one prepared shape. Addresses never change, so one graph is enough."""

    def __init__(self) -> None:
        self.graph: CudaGraph | None = None

    def __len__(self) -> int:
        return int(self.graph is not None)

    def drop(self) -> None:
        """Forget the graph, which may not be running."""
        self.graph = None

    def reset(self) -> None:
        """Forget the graph; there are no findings of earlier captures."""
        self.drop()


@dataclass
class _OutputPlace:
    """Where an output is after the enqueue, and the staging memory for it."""

    shape: Shape
    address: int
    staged: Bytes


_PreparedArrays = PreparedShape[_OutputLayout, _OneGraph]
_OnDemandOutputs = dict[str, DataDependentOutput[Memory]]


class _OnDemandAllocator:
    """Give TensorRT the memory that it requests during one enqueue.

    Args:
        cuda, stream: where the memory is used.
        reusable: memory of earlier calls, in the order of the outputs, and extended here; None for fresh memory.
    """

    def __init__(self, cuda: Cuda, stream: Stream, reusable: list[Memory] | None) -> None:
        self._cuda = cuda
        self._stream = stream
        self._reusable = reusable
        self._count = 0

    def __call__(self, size_bytes: int) -> Memory:
        if self._reusable is None:
            return self._cuda.memory(size_bytes)
        index = self._count
        self._count += 1
        if index == len(self._reusable):
            self._reusable.append(self._cuda.memory(size_bytes))
        elif self._reusable[index].size_bytes < size_bytes:
            self._stream.wait()  # Earlier calls may still be copying out of it.
            self._reusable[index] = self._cuda.memory(size_bytes)
        return self._reusable[index]


class ArrayStreamExecutor:
    """One stream with its contexts and its memory. The caller holds `lock`; `waiting` alone needs the session's lock.

    Args:
        engine: makes the contexts.
        cuda: the device; it is entered around every call.
        config: how many contexts and shapes, and when to use CUDA graphs.
        allocation: "max", "reuse" or "exact", of outputs.
        initial: memory to begin with.
        contexts: contexts to begin with.
    """

    def __init__(
        self,
        engine: Engine,
        cuda: Cuda,
        config: RuntimeConfig,
        allocation: str,
        initial: InitialBytes,
        contexts: Sequence[Context] = (),
    ) -> None:
        self.lock = threading.Lock()
        self.waiting = 0  # calls that run on it or will; guarded by the session's lock
        self.is_closed = False
        self.stream = cuda.stream()
        # The pool must hold no method of this executor, or only the garbage collector would end it.
        self.pool: ContextPool[_OutputLayout, _OneGraph, Memory] = ContextPool(
            engine, config.contexts, config.max_shapes, WorkingMemory(cuda.memory, self.stream.wait), contexts
        )
        self._cuda = cuda
        self._output_specs = engine.outputs
        self._dtypes = [numpy_dtype(spec) for spec in engine.outputs]
        self._allocates_exactly = allocation == "exact"
        self._captures = CapturePolicy(config.cuda_graphs)
        self._no_memory = cuda.memory(0)
        self._inputs = cuda.memory(initial.inputs)
        self._outputs = cuda.memory(initial.outputs)
        self._on_demand_memory: list[Memory] = []

    def run(self, pending: PendingCall) -> None:
        """Enqueue a call.

        Its arrays, its staging buffers and `pending.device_memory` stay as they are until `pending.staging.done` has
        passed.

        Raises:
            InputError, ShapeError, DtypeError: the executor was closed, or the caller's arrays don't take the outputs;
                nothing was enqueued.
            BuildError: TensorRT or the driver refuses; nothing of the call is running any more.
        """
        if self.is_closed:
            raise closed_error()
        prepared = self._prepared_shape(pending)
        context = self.pool.prepare(prepared, self.stream.handle)
        self._check_out(prepared, pending)
        outputs = self._reserve_memory(prepared, pending)
        addresses = [self._inputs.address + offset for offset in pending.inputs.offsets]
        addresses += [outputs.address + offset for offset in prepared.outputs.layout.offsets]
        if self._may_capture(prepared):
            context = self._capture(prepared, context, addresses)
        staging = pending.staging
        try:
            staging.begun.record(self.stream)
            self._copy_in(pending)
            staging.ready.record(self.stream)
            on_demand = self._infer(prepared, context, addresses)
            staging.computed.record(self.stream)
            self._copy_out(prepared, pending, outputs, on_demand)
            staging.done.record(self.stream)
        except BaseException:
            with contextlib.suppress(Exception):  # The cause of the failure may make this fail too.
                self.stream.wait()
            # The context may be unusable, and would fail at every later shape too (RTX 1.6.1).
            self.pool.drop_context(prepared)
            raise

    def _prepared_shape(self, pending: PendingCall) -> _PreparedArrays:
        call = pending.call
        prepared = self.pool.prepared.get(call.shapes)
        if prepared is None:
            prepared = PreparedShape(call.shapes, call.profile, _OutputLayout(self._dtypes), _OneGraph())
            self.pool.add(prepared)
        prepared.last_used = perf_counter()
        return prepared

    def _check_out(self, prepared: _PreparedArrays, pending: PendingCall) -> None:
        """Refuse arrays of the caller that don't take the outputs, as far as the outputs' shapes are known."""
        for index, spec in enumerate(self._output_specs):
            if spec.name in pending.out and index not in prepared.outputs.data_dependent:
                check_out_array(spec.name, pending.out[spec.name], self._dtypes[index], prepared.outputs.shapes[index])

    # The steps of a call.

    def _copy_in(self, pending: PendingCall) -> None:
        staged = pending.staging.inputs
        layout = pending.inputs
        if not pending.direct:
            if any(layout.sizes):
                self._cuda.copy_in(self._inputs.address, staged[: layout.total], self.stream)
            return
        for index, (offset, size) in enumerate(zip(layout.offsets, layout.sizes, strict=True)):
            is_direct = index in pending.direct
            source = as_bytes(pending.call.arrays[index]) if is_direct else staged[offset : offset + size]
            if size:
                self._cuda.copy_in(self._inputs.address + offset, source, self.stream)

    def _infer(self, prepared: _PreparedArrays, context: Context, addresses: Sequence[int]) -> _OnDemandOutputs:
        """Launch the CUDA graph or enqueue; return the outputs whose memory TensorRT requested."""
        if prepared.graphs.graph is not None:
            prepared.graphs.graph.launch(self.stream.handle)
            return {}
        on_demand: _OnDemandOutputs = {}
        if prepared.outputs.data_dependent:
            names = [self._output_specs[index].name for index in prepared.outputs.data_dependent]
            on_demand = context.allocate_on_demand(names, self._make_output_allocator())
        context.bind(addresses)
        try:
            context.enqueue(self.stream.handle)
        except BuildError as error:
            cause = next((output.error for output in on_demand.values() if output.error is not None), None)
            if cause is None:
                raise
            raise cause from error
        prepared.enqueue_count += 1
        return on_demand

    def _make_output_allocator(self) -> _OnDemandAllocator:
        return _OnDemandAllocator(self._cuda, self.stream, None if self._allocates_exactly else self._on_demand_memory)

    def _copy_out(
        self, prepared: _PreparedArrays, pending: PendingCall, outputs: Memory, on_demand: _OnDemandOutputs
    ) -> None:
        """Copy the outputs to staging memory, or right into page-locked arrays of the caller's."""
        if not pending.out and not on_demand:
            self._copy_out_as_one(prepared, pending, outputs)
            return
        for index, spec in enumerate(self._output_specs):
            target = pending.out.get(spec.name)
            if spec.name in on_demand:
                output = self._take_on_demand(index, pending, on_demand[spec.name])
            else:
                output = _place_of(prepared.outputs, index, outputs, pending)
            size = output.staged.nbytes
            destination = output.staged
            is_direct = False
            if target is not None and size and target.flags.c_contiguous and self._cuda.is_pinned(target):
                is_direct = True
                destination = as_bytes(target)
            staged = None if is_direct else output.staged
            pending.results.append(Result(spec.name, self._dtypes[index], output.shape, staged, target))
            if size:
                self._cuda.copy_out(destination, output.address, self.stream)

    def _copy_out_as_one(self, prepared: _PreparedArrays, pending: PendingCall, outputs: Memory) -> None:
        """Copy all outputs to staging memory at once, since they have the same layout there as on the device."""
        layout = prepared.outputs.layout
        staging = pending.staging.outputs
        for index, spec in enumerate(self._output_specs):
            offset = layout.offsets[index]
            staged = staging[offset : offset + layout.sizes[index]]
            result = Result(spec.name, self._dtypes[index], prepared.outputs.shapes[index], staged, None)
            pending.results.append(result)
        if any(layout.sizes):
            self._cuda.copy_out(staging[: layout.total], outputs.address, self.stream)

    def _take_on_demand(self, index: int, pending: PendingCall, output: DataDependentOutput[Memory]) -> _OutputPlace:
        """The place of an output whose shape and memory are known since the enqueue."""
        name = self._output_specs[index].name
        dtype = self._dtypes[index]
        if name in pending.out:
            check_out_array(name, pending.out[name], dtype, output.shape)
        staged = self._cuda.pinned(math.prod(output.shape) * dtype.itemsize)
        address = 0
        if staged.nbytes and output.memory is not None:
            address = output.memory.address
            pending.device_memory.append(output.memory)
        output.memory = None  # TensorRT holds on to the object.
        return _OutputPlace(output.shape, address, staged)

    # CUDA graphs.

    def _may_capture(self, prepared: _PreparedArrays) -> bool:
        """Whether a CUDA graph for these shapes pays, and is possible by now."""
        captures = self._captures
        if prepared.graphs.graph is not None or not captures.is_enabled or not captures.is_warm(prepared):
            return False
        if prepared.outputs.data_dependent or self._allocates_exactly:
            return False
        return captures.check_threads(prepared.last_used)

    def _capture(self, prepared: _PreparedArrays, context: Context, addresses: Sequence[int]) -> Context:
        """Make a CUDA graph for these shapes; return their context, which may be a new one."""
        try:
            prepared.graphs.graph = capture_inference(
                context, addresses, self.stream.handle, event=0, gpu_index=self._cuda.index
            )
        except BaseException as error:
            self.stream.wait()
            self.pool.drop_context(prepared)  # A capture that failed half-way may have left it unusable.
            if not isinstance(error, NotCapturable):
                raise
            self._captures.count_failure()
            if not self._captures.is_enabled:
                _logger.warning("Processor answers without CUDA graphs from now on: %s", error)
        return self.pool.prepare(prepared, self.stream.handle)

    # Memory of inputs and outputs.

    def _reserve_memory(self, prepared: _PreparedArrays, pending: PendingCall) -> Memory:
        """Make sure that there is memory for the call's inputs and outputs; return that of the outputs."""
        output_bytes = prepared.outputs.layout.total
        pending.staging.reserve(0, output_bytes)
        if self._inputs.size_bytes < pending.inputs.total:
            self._inputs = self._make_larger(self._inputs, pending.inputs.total)
        if self._allocates_exactly:
            memory = self._cuda.memory(output_bytes)
            pending.device_memory.append(memory)
            return memory
        if self._outputs.size_bytes < output_bytes:
            self._outputs = self._make_larger(self._outputs, output_bytes)
        return self._outputs

    def _make_larger(self, old: Memory, size_bytes: int) -> Memory:
        """Replace memory that earlier calls may still use, and whose address CUDA graphs contain."""
        self.pool.drop_graphs()
        return self._cuda.memory(max(size_bytes, old.size_bytes * 3 // 2))

    def close(self) -> None:
        """Wait for running work and give everything back."""
        self.is_closed = True
        with contextlib.suppress(Exception):  # A broken context is given back all the same.
            self.stream.wait()
        self.pool.close()
        self._on_demand_memory.clear()
        self._inputs = self._outputs = self._no_memory


def _place_of(layout: _OutputLayout, index: int, outputs: Memory, pending: PendingCall) -> _OutputPlace:
    """The place of an output whose shape was known before the enqueue."""
    offset = layout.layout.offsets[index]
    staged = pending.staging.outputs[offset : offset + layout.layout.sizes[index]]
    return _OutputPlace(layout.shapes[index], outputs.address + offset, staged)
