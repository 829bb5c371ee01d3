"""One stream's share of an engine: its contexts and working memory, and the order of the work in them.

Enters: addresses of checked inputs, on the caller's current stream. Leaves: outputs, ready on that stream. Separate
from the session because it decides which work may overlap. Work of one executor never overlaps. Two executors share no
memory that is written to, unless they share their work order too; then their work does not overlap either.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

import torch

from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError
from torch2engine.deployed.trt.output_tensors import OutputTensors, TensorMemory, empty_like_each
from torch2engine.deployed.trt.shape_graphs import ShapeGraphs, StaticBufferGraph
from torch2engine.deployed.trt.work_order import WorkOrder
from torch2engine.trt.context import Context
from torch2engine.trt.context_pool import ContextPool, PreparedShape
from torch2engine.trt.cuda_graph import CudaGraph, DedicatedStream, NotCapturable, capture_inference
from torch2engine.trt.cuda_graph_policy import CapturePolicy
from torch2engine.trt.engine import Engine

__all__ = ["PER_THREAD_STREAM", "PreparedTensors", "StreamExecutor"]

PER_THREAD_STREAM = 2  # CUDA's handle of every thread's own default stream: one handle, many streams

PreparedTensors = PreparedShape[OutputTensors, ShapeGraphs]


class StreamExecutor:
    """Contexts that work in one memory, one after the other, for one stream at a time.

    Args:
        engine: makes the contexts.
        device: where it runs; the caller makes it current around every call.
        config: limits, and when to use CUDA graphs.
        stream_of: gives the torch.cuda.Stream of the current stream's handle.
    """

    def __init__(
        self, engine: Engine, device: torch.device, config: RuntimeConfig, stream_of: Callable[[int], torch.cuda.Stream]
    ) -> None:
        self.last_used = perf_counter()
        self.is_closed = False
        self._output_specs = engine.outputs
        self._has_static_outputs = config.output == "static"
        self._device = device
        self._stream_of = stream_of
        self._captures = CapturePolicy(config.cuda_graphs)
        # The legacy default stream can neither be captured nor enqueued on without a device-wide wait.
        self._dedicated_stream = DedicatedStream()
        self._side_handle = self._dedicated_stream.handle
        self._side_stream = torch.cuda.ExternalStream(self._side_handle, device)
        self._side_may_start = torch.cuda.Event()
        make_order = partial(WorkOrder, device, self._side_stream)
        shared = config.shared_memory
        self.order = make_order() if shared is None else shared.on_device(device.index, make_order)
        self.lock = self.order.memory.lock
        self._work_done = self.order.done
        # The pool must hold no method of this executor: a dropped module would wait for the cyclic garbage collector.
        self.pool: ContextPool[OutputTensors, ShapeGraphs, TensorMemory] = ContextPool(
            engine, config.contexts, config.max_shapes, self.order.memory
        )

    def execute(
        self,
        shapes: tuple[torch.Size, ...],
        profile: int | None,
        inputs: Sequence[torch.Tensor],
        addresses: Sequence[int],
        handle: int,
    ) -> list[torch.Tensor] | None:
        """Answer inputs on the current stream.

        Args:
            shapes: of the inputs.
            profile: that holds them; None if these shapes were answered before.
            inputs: contiguous, in the engine's dtypes, on its device.
            addresses: theirs, 256-byte aligned; 0 for an empty tensor.
            handle: of the current stream.

        Returns:
            the outputs; None if a profile is needed, or if the executor was closed.

        Raises:
            BuildError: TensorRT refuses, mostly for want of memory.
            ShapeError: TensorRT refuses the shapes.
        """
        with self.lock:
            if self.is_closed:
                return None
            prepared = self.pool.prepared.get(shapes)
            if prepared is None:
                if profile is None:
                    return None
                prepared = self._add(shapes, profile)
            if handle != self.order.last_handle:
                self._take_over(handle)
            self.last_used = prepared.last_used = perf_counter()
            outputs = prepared.outputs.for_next_call()
            key = (*addresses, *[output.data_ptr() for output in outputs])
            graph = prepared.graphs.by_addresses.get(key)
            if graph is None:
                return self._execute_at_new_addresses(prepared, inputs, outputs, key, handle)
            try:
                graph.launch(handle)
            except BuildError:
                self._drop_broken_graphs(prepared)
                raise
            return outputs

    def _add(self, shapes: tuple[torch.Size, ...], profile: int) -> PreparedTensors:
        outputs = OutputTensors(self._output_specs, self._has_static_outputs, self._device)
        prepared = PreparedShape(shapes, profile, outputs, ShapeGraphs())
        self.pool.add(prepared)
        return prepared

    # Order. All work in one memory follows the work before it: on one stream, or by these three functions.

    def _take_over(self, handle: int) -> None:
        """Let another stream than the last one wait until the memory is no longer in use."""
        stream = self._stream_of(handle)
        stream.wait_event(self._work_done)
        # A stream that is not PyTorch's (its id is its handle) may be destroyed and its handle be given to another.
        is_lasting = (stream.stream_id != handle or not handle) and handle != PER_THREAD_STREAM
        self.order.last_handle = handle if is_lasting else None

    def _fork(self, caller: torch.cuda.Stream) -> None:
        """Let the side stream wait for the caller's."""
        self._side_may_start.record(caller)
        self._side_stream.wait_event(self._side_may_start)

    def _join(self, caller: torch.cuda.Stream) -> None:
        """Let the caller's stream wait for the side stream; so it may free inputs and temporaries as its own."""
        caller.wait_event(self._work_done)

    # Ways to compute at addresses that have no CUDA graph yet.

    def _execute_at_new_addresses(
        self,
        prepared: PreparedTensors,
        inputs: Sequence[torch.Tensor],
        outputs: list[torch.Tensor],
        key: tuple[int, ...],
        handle: int,
    ) -> list[torch.Tensor]:
        """Make a CUDA graph for these addresses, use one with static buffers, or enqueue: whatever pays."""
        if not outputs:  # There was no context yet, so the outputs' shapes were unknown.
            self._prepare(prepared, handle)
            outputs = prepared.outputs.for_next_call()
            key = (*key, *[output.data_ptr() for output in outputs])
        captures = self._captures
        if captures.is_enabled and captures.is_warm(prepared) and not prepared.outputs.data_dependent:
            try:
                if self._count_sighting(prepared, key):
                    self._capture_and_launch(prepared, key, handle)
                    return outputs
                if self._static_buffers_pay(prepared, inputs):
                    self._run_in_static_buffers(prepared, inputs, outputs, handle)
                    return outputs
            except NotCapturable as error:
                self._count_failed_capture(prepared, str(error))
        return self._enqueue(prepared, outputs, key, handle)

    def _count_sighting(self, prepared: PreparedTensors, key: tuple[int, ...]) -> bool:
        """Count a call at these addresses, unless captures are paused; True if it is time to capture a graph."""
        now = prepared.last_used
        if self._captures.is_paused(now) or not prepared.graphs.count_sighting(key):
            return False
        return self._captures.check_threads(now)

    def _static_buffers_pay(self, prepared: PreparedTensors, inputs: Sequence[torch.Tensor]) -> bool:
        graphs = prepared.graphs
        if not graphs.copying_pays(self._captures.is_forced, inputs, prepared.outputs.templates):
            return False
        return graphs.static_buffers is not None or self._captures.check_threads(prepared.last_used)

    def _capture_and_launch(self, prepared: PreparedTensors, key: tuple[int, ...], handle: int) -> None:
        if prepared.graphs.is_full:  # graphs for addresses that no longer occur
            self._work_done.synchronize()
            prepared.graphs.drop()
        graph = self._capture(prepared, key)
        prepared.graphs.add(key, graph)
        self._launch(prepared, graph, handle)

    def _run_in_static_buffers(
        self, prepared: PreparedTensors, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor], handle: int
    ) -> None:
        static = prepared.graphs.static_buffers
        if static is None:
            static = self._capture_static_buffers(prepared, inputs, outputs)
            prepared.graphs.static_buffers = static
        try:
            for buffer, given in zip(static.inputs, inputs, strict=True):
                buffer.copy_(given)
            self._launch(prepared, static.graph, handle)
            if static.outputs is not outputs:
                for result, buffer in zip(outputs, static.outputs, strict=True):
                    result.copy_(buffer)
        finally:
            self._work_done.record(self._stream_of(handle))  # the graph's own record came before the copies out

    def _enqueue(
        self, prepared: PreparedTensors, outputs: list[torch.Tensor], key: tuple[int, ...], handle: int
    ) -> list[torch.Tensor]:
        context = prepared.context
        if context is None or self.pool.memory is None or prepared.memory is not self.pool.memory:
            context = self._prepare(prepared, handle)
        caller = self._stream_of(handle)
        on_side_stream = handle <= PER_THREAD_STREAM
        stream = self._side_stream if on_side_stream else caller
        if on_side_stream:
            self._fork(caller)
        try:
            start = perf_counter()
            if prepared.outputs.data_dependent:
                prepared.outputs.allocate_on_demand(context)
            context.bind(key if all(key) else prepared.outputs.replace_null_addresses(key))
            context.enqueue(self._side_handle if on_side_stream else handle)
            if prepared.outputs.data_dependent:
                outputs = prepared.outputs.resolve_data_dependent(outputs)
            prepared.enqueue_count += 1
            prepared.graphs.note_enqueue(perf_counter() - start)
        except BuildError as error:
            # Out of memory, say. The context would fail at every later shape too (RTX 1.6.1): start afresh.
            stream.synchronize()
            cause = prepared.outputs.allocation_error()
            self.pool.drop_context(prepared)
            if cause is None:
                raise
            try:
                raise cause from error
            finally:
                del cause  # the traceback holds this frame, and the frame holds the inputs
        finally:
            self._work_done.record(stream)
            if on_side_stream:
                self._join(caller)
        return outputs

    # CUDA graphs.

    def _launch(self, prepared: PreparedTensors, graph: CudaGraph, handle: int) -> None:
        try:
            graph.launch(handle)
        except BuildError:
            self._drop_broken_graphs(prepared)
            raise

    def _drop_broken_graphs(self, prepared: PreparedTensors) -> None:
        """Forget graphs that can't be launched, or every call that meets them would fail."""
        self._work_done.synchronize()
        prepared.graphs.drop()

    def _capture(self, prepared: PreparedTensors, key: Sequence[int]) -> CudaGraph:
        """Capture an inference at these addresses, on the side stream."""
        context = self._prepare(prepared, self._side_handle)
        try:
            return capture_inference(
                context, key, self._side_handle, self._work_done.cuda_event, gpu_index=self._device.index
            )
        except NotCapturable:
            raise  # `_count_failed_capture` starts afresh.
        except BaseException:
            self._work_done.synchronize()
            self.pool.drop_context(prepared)  # A capture that failed half-way may have left it unusable.
            raise

    def _capture_static_buffers(
        self, prepared: PreparedTensors, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor]
    ) -> StaticBufferGraph:
        """Capture an inference at buffers of its own; static outputs are such buffers already."""
        try:
            with torch.inference_mode(False):
                input_buffers = empty_like_each(inputs)
                output_buffers = outputs if self._has_static_outputs else prepared.outputs.make_fresh()
        except torch.OutOfMemoryError as error:
            raise NotCapturable("no memory is left for a graph's own tensors") from error
        key = [tensor.data_ptr() for tensor in (*input_buffers, *output_buffers)]
        return StaticBufferGraph(input_buffers, output_buffers, self._capture(prepared, key))

    def _count_failed_capture(self, prepared: PreparedTensors, reason: str) -> None:
        """Start afresh after a capture that failed; after the last attempt go on without graphs, and say so."""
        self._work_done.synchronize()
        self.pool.drop_context(prepared)
        self._captures.count_failure()
        if not self._captures.is_enabled:
            warnings.warn(
                f"TRTModule answers without CUDA graphs from now on: {reason}; RuntimeConfig(cuda_graphs=False) says "
                "so beforehand",
                stacklevel=2,
            )

    # Contexts.

    def _prepare(self, prepared: PreparedTensors, handle: int) -> Context:
        """Give the shapes a context and memory, for work on the stream of this handle."""
        on_side_stream = handle <= PER_THREAD_STREAM or handle == self._side_handle
        stream = self._side_stream if on_side_stream else self._stream_of(handle)
        if on_side_stream:  # A context may change its profile there, before the fork.
            stream.wait_event(self._work_done)
        return self.pool.prepare(prepared, stream.cuda_stream, partial(self._work_done.record, stream))

    def hand_over(self, shapes: tuple[torch.Size, ...]) -> PreparedTensors | None:
        """Give away a context that has answered these shapes before, for a capture by the user."""
        with self.lock:
            return self.pool.hand_over(shapes)

    def drop_contexts(self) -> None:
        """Wait for all work and let go of contexts and graphs; the lock is held. Later calls make them anew."""
        self.pool.drop_contexts()

    def close(self) -> None:
        """Wait for all work and let go of everything; the executor answers no more."""
        with self.lock:
            self.is_closed = True
            self.pool.drop_contexts()
        self.pool.close()  # needs the lock free, to free memory that nobody else uses

    def close_unreachable(self) -> None:
        """Close an executor that nobody can call any more, without the lock, which others may share.

        The garbage collector may do this in a thread that holds the lock, or that its holder waits for.
        """
        self.is_closed = True
        self.pool.drop_contexts()
        self.pool.close()
