"""The execution contexts of one stream: which shapes have one, and the device memory that all of them share.

Enters: input shapes, and working memory that other pools may share. Leaves: a context that is ready to enqueue at
these shapes. Separate because TRTModule on PyTorch's memory and Processor on pycuda's use the same pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from torch2engine.trt.context import Context
from torch2engine.trt.engine import Engine
from torch2engine.trt.memory import DeviceMemory, MemoryT
from torch2engine.trt.working_memory import WorkingMemory

__all__ = ["ContextPool", "PreparedShape", "Shapes"]

Shapes = tuple[tuple[int, ...], ...]


class OutputsOfContext(Protocol):
    """The outputs of one prepared shape, as TRTModule or Processor sees them."""

    def set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Take the shapes that TensorRT gives; -1 stands for a dimension that only values decide."""
        ...

    def reset(self) -> None:
        """Forget everything that belongs to the context, which other shapes take over."""
        ...


class GraphsOfContext(Protocol):
    """The CUDA graphs of one prepared shape."""

    def __len__(self) -> int: ...

    def drop(self) -> None:
        """Forget the graphs; none of them may be running."""
        ...

    def reset(self) -> None:
        """Forget the graphs, and the findings of earlier captures."""
        ...


OutputsT = TypeVar("OutputsT", bound=OutputsOfContext)
GraphsT = TypeVar("GraphsT", bound=GraphsOfContext)


class PreparedShape(Generic[OutputsT, GraphsT]):
    """One set of input shapes on one stream: its execution context, outputs, working memory and CUDA graphs.

    A shape stays known without a context, which other shapes may have taken over. The pool alone writes `context`,
    `memory`, `memory_bytes` and `eviction_count`.

    Args:
        shapes: one per input of the signature.
        profile: index of a profile that holds them.
        outputs: the outputs at these shapes.
        graphs: the CUDA graphs at these shapes.
    """

    def __init__(self, shapes: Shapes, profile: int, outputs: OutputsT, graphs: GraphsT) -> None:
        self.shapes = shapes
        self.profile = profile
        self.outputs = outputs
        self.graphs = graphs
        self.last_used = 0.0  # by time.perf_counter()
        self.enqueue_count = 0  # with the present context
        self.eviction_count = 0  # how often a context with graphs was taken away
        self.context: Context | None = None
        self.memory: DeviceMemory | None = None  # that the context works in
        self.memory_bytes = 0  # that the context needs

    def forget_context(self) -> None:
        """Forget the context and its CUDA graphs; shapes and outputs' shapes stay known."""
        self.graphs.reset()
        self.outputs.reset()
        self.context = None
        self.memory = None
        self.enqueue_count = 0


class ContextPool(Generic[OutputsT, GraphsT, MemoryT]):
    """Execution contexts at their shapes, which work one after the other in one piece of memory. Not thread-safe.

    There is a limit for contexts and one for prepared shapes. Above it, the one that was used least recently is
    dropped.

    Args:
        engine: makes the contexts.
        max_contexts: how many contexts there may be.
        max_shapes: how many sets of shapes stay known.
        memory: that all contexts work in; its `wait` waits for their work.
        contexts: contexts to begin with, without shapes.
    """

    def __init__(
        self,
        engine: Engine,
        max_contexts: int,
        max_shapes: int,
        memory: WorkingMemory[MemoryT],
        contexts: Sequence[Context] = (),
    ) -> None:
        self.prepared: dict[Shapes, PreparedShape[OutputsT, GraphsT]] = {}
        self._engine = engine
        self._max_contexts = max_contexts
        self._max_shapes = max_shapes
        self._memory = memory
        self._wait = memory.wait
        self._spare = list(contexts)
        self._context_count = len(contexts)  # spare ones and those at shapes
        memory.join(self)

    @property
    def memory(self) -> MemoryT | None:
        """The memory that contexts work in; None if there is none yet."""
        return self._memory.memory

    def add(self, prepared: PreparedShape[OutputsT, GraphsT]) -> None:
        """Add a set of shapes; at the limit it replaces the one that was used least recently."""
        if len(self.prepared) >= self._max_shapes:
            oldest = min(self.prepared.values(), key=_last_used)
            self._release_context(oldest)
            del self.prepared[oldest.shapes]
        self.prepared[prepared.shapes] = prepared

    def prepare(
        self,
        prepared: PreparedShape[OutputsT, GraphsT],
        stream: int,
        record_change: Callable[[], object] | None = None,
    ) -> Context:
        """Give the shapes a context, and the context the pool's memory, if they lack them.

        Args:
            prepared: the shapes.
            stream: handle of the stream on which a change of profile is ordered.
            record_change: makes later work wait for that change, even if the call fails afterwards.

        Raises:
            ShapeError: TensorRT refuses the shapes.
            BuildError: there is no memory for a context or for its work.
        """
        context = prepared.context
        if context is None:
            context = self._attach_context(prepared, stream, record_change)
        memory = self.memory
        if memory is None or prepared.memory_bytes > memory.size_bytes:
            memory = self._grow_memory(prepared)
        if prepared.memory is not memory:
            context.set_memory(memory.address, memory.size_bytes)
            prepared.memory = memory
        return context

    def _attach_context(
        self, prepared: PreparedShape[OutputsT, GraphsT], stream: int, record_change: Callable[[], object] | None
    ) -> Context:
        context = self._take_spare_context()
        try:
            prepared.outputs.set_shapes(context.set_shapes(prepared.profile, prepared.shapes, stream))
            prepared.memory_bytes = context.memory_bytes()
            prepared.context = context
            if record_change is not None:
                record_change()
        except BaseException:
            self._wait()  # The context may still run for the shapes that it had before.
            self._context_count -= 1
            prepared.context = None
            raise
        return context

    def _take_spare_context(self) -> Context:
        if not self._spare and self._context_count >= self._max_contexts:
            holders = [prepared for prepared in self.prepared.values() if prepared.context is not None]
            if holders:
                self._release_context(min(holders, key=_last_used))
        if self._spare:
            return self._spare.pop()
        context = self._engine.make_context()
        self._context_count += 1
        return context

    def _release_context(self, prepared: PreparedShape[OutputsT, GraphsT]) -> None:
        """Take the context from its shapes, for use at others; a worn one is dropped."""
        context = prepared.context
        if context is None:
            return
        has_graphs = len(prepared.graphs) > 0
        prepared.eviction_count += has_graphs
        if has_graphs or context.is_worn:
            self._wait()
        if context.is_worn:
            self._context_count -= 1
        else:
            self._spare.append(context)
        prepared.forget_context()

    def _grow_memory(self, prepared: PreparedShape[OutputsT, GraphsT]) -> MemoryT:
        """Allocate memory for the shapes, with some to spare if it is not the first."""
        size = prepared.memory_bytes
        present = self._memory.size_bytes
        if present:
            size = max(size, min(present * 3 // 2, self._engine.memory_bytes(prepared.profile)))
        self._memory.grow(max(size, 1))
        assert self.memory is not None, "it has just grown"
        return self.memory

    def forget_memory(self) -> None:
        """Forget the memory's address, which contexts and CUDA graphs contain; none of these is running."""
        for prepared in list(self.prepared.values()):
            prepared.graphs.drop()
            prepared.memory = None

    def drop_graphs(self) -> None:
        """Wait for all work and forget every CUDA graph."""
        self._wait()
        for prepared in self.prepared.values():
            prepared.graphs.drop()

    def drop_context(self, prepared: PreparedShape[OutputsT, GraphsT]) -> None:
        """Forget the context of these shapes, which may be unusable; its stream must be idle."""
        if prepared.context is not None:
            self._context_count -= 1
        prepared.forget_context()

    def hand_over(self, shapes: Shapes) -> PreparedShape[OutputsT, GraphsT] | None:
        """Give away prepared shapes with a context that was enqueued before; None if there are none."""
        prepared = self.prepared.get(shapes)
        if prepared is None or prepared.context is None or not prepared.enqueue_count:
            return None
        self._context_count -= 1
        prepared.memory = None  # The pool's memory stays here.
        return self.prepared.pop(shapes)

    def drop_contexts(self) -> None:
        """Wait for all work and forget contexts and CUDA graphs; shapes and memory stay."""
        self._wait()
        self._forget_contexts()

    def _forget_contexts(self) -> None:
        for prepared in self.prepared.values():
            prepared.forget_context()
        self._spare.clear()
        self._context_count = 0

    def close(self) -> None:
        """Forget everything, and leave the memory; its work must be through."""
        self._forget_contexts()
        self.prepared.clear()
        self._memory.leave(self)


def _last_used(prepared: PreparedShape[OutputsT, GraphsT]) -> float:
    return prepared.last_used
