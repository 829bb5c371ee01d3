"""One stream of a Processor: contexts at their shapes, device memory, and everything of a call in its order.

Enters: staged inputs. Leaves: copies in, the engine and copies out, enqueued one after the other. Apart because within
a lane everything follows on what came before by being on one stream, while two lanes share nothing that can be written
to: the memory of a lane is used again without anybody waiting for the GPU.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from time import perf_counter

from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError, InputError
from torch2engine.processor.arrays import Shape, check_out, numpy_dtype
from torch2engine.processor.cuda import Cuda, Memory
from torch2engine.processor.staging import ALIGNMENT_BYTES, Job, Result, flat, layout
from torch2engine.trt.context import Context, Found
from torch2engine.trt.cuda_graph import Graph, NotCapturable
from torch2engine.trt.engine import Engine
from torch2engine.trt.threads import is_alone

__all__ = ["Lane", "Room", "closed"]

_logger = logging.getLogger("torch2engine.runtime")
_WARM = {True: 1, "auto": 2}  # enqueues after which TensorRT has loaded what a capture may not load
_ATTEMPTS = 3  # at captures, which other threads can break
# Whose users may wait for a whole device, in other threads, which a capture would make fail.
_SYNCHRONIZERS = ("torch", "cupy", "numba.cuda", "jax", "tensorflow")


def closed() -> InputError:
    """The error of a call that comes too late."""
    return InputError("Processor", got="a call after close()", allowed="calls before it", fix="make another Processor")


class Room:
    """How many bytes of inputs and of outputs there is memory for from the beginning."""

    def __init__(self, inputs: int = 0, outputs: int = 0) -> None:
        self.inputs = inputs
        self.outputs = outputs


class _Plan:
    """One set of input shapes in a lane."""

    def __init__(self, shapes: tuple[Shape, ...], profile: int) -> None:
        self.shapes = shapes
        self.profile = profile
        self.used = 0.0
        self.context: Context | None = None
        self.memory: Memory | None = None  # what the context works in
        self.memory_bytes = 0
        self.outputs: list[Shape] = []
        self.layout = layout(())
        self.enqueued = 0
        self.graph: Graph | None = None

    @property
    def unknown(self) -> list[int]:
        """Outputs whose shapes only their values decide."""
        return [index for index, shape in enumerate(self.outputs) if min(shape, default=0) < 0]

    def clear(self) -> None:
        self.context = self.memory = self.graph = None
        self.enqueued = 0


class Lane:
    """One stream with its contexts and its memory; what is not said to be for anybody is for who holds `lock`.

    Args:
        engine: makes the contexts.
        cuda: the device; it is entered around every call.
        config: how many contexts and shapes, and when to use CUDA graphs.
        allocation: "max", "reuse" or "exact", of outputs.
        room: memory to begin with.
        spare: contexts to begin with.
    """

    def __init__(
        self,
        engine: Engine,
        cuda: Cuda,
        config: RuntimeConfig,
        allocation: str,
        room: Room,
        spare: Sequence[Context] = (),
    ) -> None:
        self.lock = threading.Lock()
        self.waiting = 0  # calls that are on it or on their way; the pipeline's lock is held
        self.is_closed = False
        self.stream = cuda.stream()
        self._engine = engine
        self._cuda = cuda
        self._config = config
        self._allocation = allocation
        self._graphs = config.cuda_graphs
        self._attempts = _ATTEMPTS
        self._dtypes = [numpy_dtype(spec) for spec in engine.outputs]
        self._plans: dict[tuple[Shape, ...], _Plan] = {}
        self._free = list(spare)
        self._contexts = len(self._free)
        self._memory: Memory | None = None
        self._none = cuda.memory(0)
        self._inputs = cuda.memory(room.inputs)
        self._outputs = cuda.memory(room.outputs)
        self._found: dict[str, Memory] = {}  # of outputs that TensorRT asks memory for

    def run(self, job: Job) -> None:
        """Enqueue a call; its arrays, its ticket and `job.kept` stay as they are until `job.ticket.done` has passed.

        Raises:
            InputError, ShapeError, DtypeError: the lane was closed, or the caller's arrays don't take the outputs;
                nothing was enqueued.
            BuildError: TensorRT or the driver refuses; nothing of the call is running any more.
        """
        if self.is_closed:
            raise closed()
        plan = self._plan(job)
        context = self._prepare(plan)
        for spec, dtype, shape in zip(self._engine.outputs, self._dtypes, plan.outputs, strict=True):
            if spec.name in job.out and min(shape, default=0) >= 0:
                check_out(spec.name, job.out[spec.name], dtype, shape)
        outputs = self._make_room(plan, job)
        addresses = [self._inputs.address + offset for offset in job.inputs.offsets]
        addresses += [outputs.address + offset for offset in plan.layout.offsets]
        if self._may_capture(plan):
            context = self._capture(plan, context, addresses)
        ticket, stream = job.ticket, self.stream
        try:
            ticket.begun.record(stream)
            self._copy_in(job)
            ticket.ready.record(stream)
            found = self._launch(plan, context, addresses)
            ticket.computed.record(stream)
            self._copy_out(plan, job, outputs, found)
            ticket.done.record(stream)
        except BaseException:
            with contextlib.suppress(Exception):  # what made the call fail may make this fail too
                stream.wait()
            self._drop(plan)  # its context may be unusable, and would fail at every later shape too (RTX 1.6.1)
            raise

    # The steps of a call.

    def _copy_in(self, job: Job) -> None:
        base, ticket = self._inputs.address, job.ticket
        if not job.direct:
            if any(job.inputs.sizes):
                self._cuda.copy_in(base, ticket.inputs[: job.inputs.total], self.stream)
            return
        for index, (offset, size) in enumerate(zip(job.inputs.offsets, job.inputs.sizes, strict=True)):
            source = flat(job.call.arrays[index]) if index in job.direct else ticket.inputs[offset : offset + size]
            if size:
                self._cuda.copy_in(base + offset, source, self.stream)

    def _launch(self, plan: _Plan, context: Context, addresses: Sequence[int]) -> dict[str, Found]:
        if plan.graph is not None:
            plan.graph.launch(self.stream.handle)
            return {}
        names = [self._engine.outputs[index].name for index in plan.unknown]
        found = context.find_outputs(names, self._asked()) if names else {}
        context.bind(addresses)
        try:
            context.enqueue(self.stream.handle)
        except BuildError as error:
            cause = next((one.error for one in found.values() if one.error is not None), None)
            if cause is None:
                raise
            raise cause from error
        plan.enqueued += 1
        return found

    def _asked(self) -> Callable[[int], tuple[int, Memory]]:
        """What gives TensorRT memory for outputs whose shapes it finds out while it runs."""
        cuda, kept, stream, exact = self._cuda, self._found, self.stream, self._allocation == "exact"
        asked = iter(range(sys.maxsize))

        def allocate(size_bytes: int) -> tuple[int, Memory]:
            which = str(next(asked))
            memory = None if exact else kept.get(which)
            if memory is None or memory.size_bytes < size_bytes:
                if memory is not None:
                    stream.wait()  # calls before may still be copying out of it
                memory = cuda.memory(size_bytes)
                if not exact:
                    kept[which] = memory
            return memory.address, memory

        return allocate

    def _copy_out(self, plan: _Plan, job: Job, outputs: Memory, found: dict[str, Found]) -> None:
        whole = not job.out and not found
        for index, spec in enumerate(self._engine.outputs):
            dtype, shape, target = self._dtypes[index], plan.outputs[index], job.out.get(spec.name)
            offset, size = plan.layout.offsets[index], plan.layout.sizes[index]
            address, staged = outputs.address + offset, job.ticket.outputs[offset : offset + size]
            if spec.name in found:
                one = found[spec.name]
                shape, size = one.shape, math.prod(one.shape) * dtype.itemsize
                if target is not None:
                    check_out(spec.name, target, dtype, shape)
                staged = self._cuda.pinned(size)
                if size:
                    address = one.owner.address
                    job.kept.append(one.owner)
                one.owner = None  # TensorRT keeps what holds it
            direct = target is not None and size and target.flags.c_contiguous and self._cuda.is_pinned(target)
            job.results.append(Result(spec.name, dtype, shape, None if direct else staged, target))
            if size and not whole:
                into = flat(target) if direct and target is not None else staged
                self._cuda.copy_out(into, address, self.stream)
        if whole and any(plan.layout.sizes):
            self._cuda.copy_out(job.ticket.outputs[: plan.layout.total], outputs.address, self.stream)

    # CUDA graphs: addresses stay, so that one for each set of shapes is enough.

    def _may_capture(self, plan: _Plan) -> bool:
        """Whether a graph is wanted for the plan, and possible by now."""
        if plan.graph is not None or not self._graphs or plan.enqueued < _WARM[self._graphs]:
            return False
        if plan.unknown or self._allocation == "exact":
            return False
        return self._graphs is True or is_alone() or not any(name in sys.modules for name in _SYNCHRONIZERS)

    def _capture(self, plan: _Plan, context: Context, addresses: Sequence[int]) -> Context:
        """Make a graph for the plan; gives the context that the plan has then."""
        collecting = gc.isenabled()
        gc.disable()  # destructors may do what a capture forbids
        try:
            if reason := context.why_not_capturable(self.stream.handle):
                raise NotCapturable(reason)
            context.bind(addresses)
            plan.graph = Graph(context.enqueue, self.stream.handle, 0, self._cuda.index)
        except BaseException as error:
            self.stream.wait()
            self._drop(plan)  # a capture that failed half-way may have left its context unusable
            if not isinstance(error, NotCapturable):
                raise
            self._attempts -= 1
            if not self._attempts:
                self._graphs = False
                _logger.warning("Processor answers without CUDA graphs from now on: %s", error)
        finally:
            if collecting:
                gc.enable()
        return self._prepare(plan)

    # What is kept: contexts up to a limit, plans up to another, one memory for all of them.

    def _plan(self, job: Job) -> _Plan:
        plan = self._plans.get(job.call.shapes)
        if plan is None:
            if len(self._plans) >= self._config.max_shapes:
                oldest = min(self._plans.values(), key=lambda plan: plan.used)
                self._release(oldest)
                del self._plans[oldest.shapes]
            plan = self._plans[job.call.shapes] = _Plan(job.call.shapes, job.call.profile)
        plan.used = perf_counter()
        return plan

    def _prepare(self, plan: _Plan) -> Context:
        """Give the plan a context at its shapes, in the lane's memory."""
        context = plan.context
        if context is None:
            context = self._spare()
            try:
                plan.outputs = context.set_shapes(plan.profile, plan.shapes, self.stream.handle)
                plan.memory_bytes = context.memory_bytes()
            except BaseException:
                self.stream.wait()  # it may still run for the shapes that it had before
                self._contexts -= 1
                raise
            known = [math.prod(shape) if min(shape, default=0) >= 0 else 0 for shape in plan.outputs]
            plan.layout = layout([count * dtype.itemsize for count, dtype in zip(known, self._dtypes, strict=True)])
            plan.context = context
        if self._memory is None or plan.memory_bytes > self._memory.size_bytes:
            self._grow(plan)
        if plan.memory is not self._memory:
            assert self._memory is not None, "it has just grown"
            context.set_memory(self._memory.address, self._memory.size_bytes)
            plan.memory = self._memory
        return context

    def _make_room(self, plan: _Plan, job: Job) -> Memory:
        """Have memory for the call's inputs and outputs; gives that of the outputs."""
        job.ticket.make_room(0, plan.layout.total)
        if self._inputs.size_bytes < job.inputs.total:
            self._inputs = self._replaced(self._inputs, job.inputs.total)
        if self._allocation == "exact":
            memory = self._cuda.memory(plan.layout.total)
            job.kept.append(memory)
            return memory
        if self._outputs.size_bytes < plan.layout.total:
            self._outputs = self._replaced(self._outputs, plan.layout.total)
        return self._outputs

    def _replaced(self, old: Memory, size_bytes: int) -> Memory:
        """Larger memory in the place of one that calls before may still be using, and graphs know by address."""
        self._forget_graphs()
        size = max(size_bytes, old.size_bytes * 3 // 2)
        return self._cuda.memory(size)

    def _grow(self, plan: _Plan) -> None:
        """Take memory to work in for the plan, with some to spare if it is not the first."""
        old, size = self._memory, max(plan.memory_bytes, ALIGNMENT_BYTES)
        if old is not None:
            size = max(size, min(old.size_bytes * 3 // 2, self._engine.memory_bytes(plan.profile)))
            self._forget_graphs()
            for other in self._plans.values():
                other.memory = None
            self._memory = None
            del old
        self._memory = self._cuda.memory(size)

    def _forget_graphs(self) -> None:
        self.stream.wait()
        for plan in self._plans.values():
            plan.graph = None

    def _spare(self) -> Context:
        if not self._free and self._contexts >= self._config.contexts:
            holders = [plan for plan in self._plans.values() if plan.context is not None]
            if holders:
                self._release(min(holders, key=lambda plan: plan.used))
        if self._free:
            return self._free.pop()
        context = self._engine.make_context()
        self._contexts += 1
        return context

    def _release(self, plan: _Plan) -> None:
        """Take the context from a plan, to be used at other shapes."""
        context = plan.context
        if context is None:
            return
        if plan.graph is not None or context.is_worn:
            self.stream.wait()
        if context.is_worn:
            self._contexts -= 1
        else:
            self._free.append(context)
        plan.clear()

    def _drop(self, plan: _Plan) -> None:
        """Forget a plan's context, which may be unusable; the stream must be idle."""
        if plan.context is not None:
            self._contexts -= 1
        plan.clear()

    def close(self) -> None:
        """Wait for what is running and give everything back."""
        self.is_closed = True
        with contextlib.suppress(Exception):  # a context that is broken is given back all the same
            self.stream.wait()
        self._plans.clear()
        self._free.clear()
        self._found.clear()
        self._memory = None
        self._inputs = self._outputs = self._none
