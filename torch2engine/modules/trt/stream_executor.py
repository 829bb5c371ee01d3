"""One stream's share of an engine: working memory, a plan for every set of shapes, and order.

Enters: addresses of checked inputs, on the stream that the caller works on. Leaves: outputs, ready on that stream.
Apart from `module` because what may run at the same time as what is decided here: work of one lane never does, work of
two lanes shares nothing that can be written to.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError
from torch2engine.modules.trt.prepared_shape import Copied, Plan, allocate
from torch2engine.trt.context import Context
from torch2engine.trt.cuda_graph import Graph, NotCapturable, OwnStream
from torch2engine.trt.engine import Engine
from torch2engine.trt.threads import is_alone

__all__ = ["PER_THREAD", "Lane"]

_ATTEMPTS = 3  # at a capture: another thread's wait for the whole device breaks one
_PATIENCE_SECONDS = 0.1
PER_THREAD = 2  # CUDA's handle of every thread's own default stream: one handle, many streams


class Lane:
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
        self.lock = threading.Lock()
        self.used = perf_counter()
        self.plans: dict[tuple[torch.Size, ...], Plan] = {}
        self.graphs = config.cuda_graphs
        self._engine = engine
        self._device = device
        self._config = config
        self._stream_of = stream_of
        self._free: list[Context] = []
        self._contexts = 0
        self._memory: torch.Tensor | None = None
        self._last = -1
        self.is_closed = False
        self._attempts = _ATTEMPTS
        self._patience = 0.0
        # The legacy default stream can neither be captured nor enqueued on without a device-wide wait.
        self._own = OwnStream()
        self._side_handle = self._own.handle
        self._side = torch.cuda.ExternalStream(self._side_handle, device)
        self._forked = torch.cuda.Event()
        self._done = torch.cuda.Event()
        self._done.record(self._side)  # makes it, so that graphs can take its handle

    @property
    def memory_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.numel()

    def answer(
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
            the outputs; None if a profile is needed, or if the lane was closed.

        Raises:
            BuildError: TensorRT refuses, mostly for want of memory.
            ShapeError: TensorRT refuses the shapes.
        """
        with self.lock:
            if self.is_closed:
                return None
            plan = self.plans.get(shapes)
            if plan is None:
                if profile is None:
                    return None
                plan = self._add(shapes, profile)
            if handle != self._last:
                self._take_over(handle)
            self.used = plan.used = perf_counter()
            outputs = plan.outputs()
            key = (*addresses, *[output.data_ptr() for output in outputs])
            graph = plan.graphs.get(key)
            if graph is None:
                return self._compute(plan, inputs, outputs, key, handle)
            try:
                graph.launch(handle)
            except BuildError:
                self._broken(plan)
                raise
            return outputs

    # Order. Within a lane everything follows on what came before: by being on one stream, or else by these three.

    def _take_over(self, handle: int) -> None:
        """Let another stream than the last one wait until the lane's memory is no longer in use."""
        stream = self._stream_of(handle)
        stream.wait_event(self._done)
        self._side.wait_event(self._done)  # where a context changes its profile before the fork
        # A stream that is not PyTorch's (its id is its handle) may be destroyed and its handle be given to another.
        known = stream.stream_id != handle or not handle
        self._last = handle if known and handle != PER_THREAD else -1

    def _fork(self, caller: torch.cuda.Stream) -> None:
        """Let the side stream wait for the caller's."""
        self._forked.record(caller)
        self._side.wait_event(self._forked)

    def _join(self, caller: torch.cuda.Stream) -> None:
        """Let the caller's stream wait for the side stream; so it may free inputs and temporaries as its own."""
        caller.wait_event(self._done)

    # Ways to compute: a graph at these very addresses, a graph with inputs copied in and outputs out, an enqueue.

    def _compute(
        self, plan: Plan, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor], key: tuple[int, ...], handle: int
    ) -> list[torch.Tensor]:
        if not outputs:  # the plan has had no context yet, so nobody knew the shapes
            self._prepare(plan, handle)
            outputs = plan.outputs()
            key = (*key, *[output.data_ptr() for output in outputs])
        if self.graphs and plan.capturable(self.graphs):
            try:
                if plan.used >= self._patience and plan.recurs(key) and self._may_capture(plan):
                    if plan.is_full:  # of addresses that no longer come
                        self._done.synchronize()
                        plan.drop_graphs()
                    graph = self._capture(plan, key)
                    plan.add(key, graph)
                    self._launch(plan, graph, handle)
                    return outputs
                if plan.copying_pays(self.graphs, inputs) and (plan.copied is not None or self._may_capture(plan)):
                    return self._copy(plan, inputs, outputs, handle)
            except NotCapturable as error:
                self._give_up(plan, str(error))
        return self._enqueue(plan, outputs, key, handle)

    def _launch(self, plan: Plan, graph: Graph, handle: int) -> None:
        try:
            graph.launch(handle)
        except BuildError:
            self._broken(plan)
            raise

    def _broken(self, plan: Plan) -> None:
        """Forget graphs that can't be launched, or every call that meets them would fail."""
        self._done.synchronize()
        plan.drop_graphs()

    def _may_capture(self, plan: Plan) -> bool:
        """Whether a capture now can't make another thread's wait for the device fail; asked for, it is done anyway."""
        if self.graphs is True:
            return True
        if plan.used < self._patience:
            return False
        if is_alone():
            return True
        self._patience = plan.used + _PATIENCE_SECONDS
        return False

    def _enqueue(
        self, plan: Plan, outputs: list[torch.Tensor], key: tuple[int, ...], handle: int
    ) -> list[torch.Tensor]:
        context = plan.context
        if context is None or self._memory is None or plan.memory is not self._memory:
            context = self._prepare(plan, handle)
        caller = self._stream_of(handle)
        fork = handle <= PER_THREAD
        stream = self._side if fork else caller
        if fork:
            self._fork(caller)
        try:
            start = perf_counter()
            if plan.unknown:
                plan.find_outputs(context)
            context.bind(key if all(key) else plan.nonzero(key))
            context.enqueue(self._side_handle if fork else handle)
            if plan.unknown:
                outputs = plan.found_outputs(outputs)
            plan.note(perf_counter() - start)
        except BuildError as error:
            # Out of memory, say. The context would fail at every later shape too (RTX 1.6.1): start afresh.
            stream.synchronize()
            cause = plan.cause()
            self._drop(plan)
            if cause is None:
                raise
            try:
                raise cause from error
            finally:
                del cause  # which holds this frame, and with it the inputs
        finally:
            self._done.record(stream)
            if fork:
                self._join(caller)
        return outputs

    def _copy(
        self, plan: Plan, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor], handle: int
    ) -> list[torch.Tensor]:
        copied = plan.copied
        if copied is None:
            try:
                own, results = plan.buffers(inputs, outputs)
            except torch.OutOfMemoryError as error:
                raise NotCapturable("no memory is left for a graph's own tensors") from error
            key = tuple(tensor.data_ptr() for tensor in (*own, *results))
            copied = plan.copied = Copied(own, results, self._capture(plan, key))
        try:
            for own, given in zip(copied.inputs, inputs, strict=True):
                own.copy_(given)
            self._launch(plan, copied.graph, handle)
            if copied.outputs is not outputs:
                for fresh, own in zip(outputs, copied.outputs, strict=True):
                    fresh.copy_(own)
        finally:
            self._done.record(self._stream_of(handle))  # the graph's own record came before the copies out
        return outputs

    def _capture(self, plan: Plan, key: tuple[int, ...]) -> Graph:
        context = self._prepare(plan, self._side_handle)
        if reason := context.why_not_capturable(self._side_handle):
            raise NotCapturable(reason)
        context.bind(key)
        collecting = gc.isenabled()
        gc.disable()  # destructors may do what a capture forbids
        try:
            return Graph(context.enqueue, self._side_handle, self._done.cuda_event, self._device.index)
        except BaseException as error:
            if not isinstance(error, NotCapturable):
                self._done.synchronize()
                self._drop(plan)  # its context may be unusable
            raise
        finally:
            if collecting:
                gc.enable()

    def _give_up(self, plan: Plan, reason: str) -> None:
        """Start afresh after a capture that failed; after the last attempt go on without graphs, and say so."""
        self._done.synchronize()
        self._drop(plan)  # a capture that failed half-way may have left it unusable
        self._attempts -= 1
        if self._attempts:
            return
        self.graphs = False
        warnings.warn(
            f"TRTModule answers without CUDA graphs from now on: {reason}; RuntimeConfig(cuda_graphs=False) says so "
            "beforehand",
            stacklevel=2,
        )

    # What is kept: contexts up to a limit, plans up to another, one memory for all of them.

    def _add(self, shapes: tuple[torch.Size, ...], profile: int) -> Plan:
        if len(self.plans) >= self._config.max_shapes:
            oldest = min(self.plans.values(), key=lambda plan: plan.used)
            self._release(oldest)
            del self.plans[oldest.shapes]
        plan = self.plans[shapes] = Plan(self._engine, shapes, profile, self._config, self._device)
        return plan

    def _prepare(self, plan: Plan, handle: int) -> Context:
        """Give the plan a context at its shapes, in the lane's memory."""
        context = plan.context
        if context is None:
            context = self._spare()
            beside = handle <= PER_THREAD or handle == self._side_handle
            stream = self._side if beside else self._stream_of(handle)
            try:
                plan.take(context, stream.cuda_stream)
                self._done.record(stream)  # of a change of profile, should the call get no further
            except BaseException:
                self._done.synchronize()  # it may still run for the shapes that it had before
                self._contexts -= 1
                raise
        if self._memory is None or plan.memory_bytes > self._memory.numel():
            self._grow(plan)
        if plan.memory is not self._memory:
            assert self._memory is not None, "it has just grown"
            context.set_memory(self._memory.data_ptr(), self._memory.numel())
            plan.memory = self._memory
        return context

    def _spare(self) -> Context:
        if not self._free and self._contexts >= self._config.contexts:
            holders = [plan for plan in self.plans.values() if plan.context is not None]
            if holders:
                self._release(min(holders, key=lambda plan: plan.used))
        if self._free:
            return self._free.pop()
        context = self._engine.make_context()
        self._contexts += 1
        return context

    def _release(self, plan: Plan) -> None:
        """Take the context from a plan, to be used at other shapes."""
        if plan.context is None:
            return
        plan.evicted += plan.has_graphs
        if plan.has_graphs or plan.context.is_worn:
            self._done.synchronize()
        if plan.context.is_worn:
            self._drop(plan)
        else:
            self._free.append(plan.context)
            plan.clear()

    def _drop(self, plan: Plan) -> None:
        """Forget a plan's context, which may be unusable; its stream must be idle."""
        if plan.context is not None:
            self._contexts -= 1
        plan.clear()

    def _grow(self, plan: Plan) -> None:
        """Take memory for the plan, with some to spare if it is not the first; graphs know the old one by address."""
        old, size = self._memory, plan.memory_bytes
        if old is not None:
            size = max(size, min(old.numel() * 3 // 2, self._engine.memory_bytes(plan.profile)))
            self._done.synchronize()
            for other in self.plans.values():
                other.drop_graphs()
                other.memory = None
            self._memory = None
            del old
        self._memory = allocate(max(size, 1), self._device)[1]

    def take_warm(self, shapes: tuple[torch.Size, ...]) -> Plan | None:
        """Hand over a plan with a context that has answered these shapes before, for a capture by the user."""
        with self.lock:
            plan = self.plans.get(shapes)
            if plan is None or plan.context is None or not plan.enqueued:
                return None
            self._contexts -= 1
            plan.memory = None  # it will work in the graph's own
            return self.plans.pop(shapes)

    def rest(self) -> None:
        """Wait for the lane's work and let go of contexts and graphs; its lock is held. Later calls make them anew."""
        self._done.synchronize()
        for plan in self.plans.values():
            plan.clear()
        self._free.clear()
        self._contexts = 0

    def close(self) -> None:
        """Wait for the lane's work and let go of everything; it answers no more."""
        with self.lock:
            self.is_closed = True
            self.rest()
            self.plans.clear()
            self._memory = None
