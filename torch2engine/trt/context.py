"""One execution context: shapes in, output shapes and memory size out, then enqueued by address.

Enters: shapes, and device addresses whose owners keep them alive. Leaves: work on a stream, or TensorRT's own lines in
an error. Separate from `engine` because an engine has many contexts, each at its own shapes.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic

from torch2engine.core.errors import ShapeError
from torch2engine.core.spec import TensorSpec
from torch2engine.core.tf32 import float32_arithmetic
from torch2engine.trt.bindings import Dims, IExecutionContext, IOutputAllocator, TensorRT, check_return_value
from torch2engine.trt.memory import ALIGNMENT_BYTES, DeviceMemory, MemoryT

__all__ = ["Context", "DataDependentOutput"]

_MAX_SHAPE_CHANGES = 64

_Allocate = Callable[[int], DeviceMemory]


class DataDependentOutput(Generic[MemoryT]):
    """An output whose shape only its values decide. The enqueue fills in these attributes.

    Attributes:
        memory: its memory; None if TensorRT requested none.
        shape: its shape.
        error: the exception of the allocation; the bindings would print and forget it.
    """

    def __init__(self) -> None:
        self.memory: MemoryT | None = None
        self.shape: tuple[int, ...] = ()
        self.error: Exception | None = None


class Context:
    """An execution context of one profile and, at a time, one set of shapes.

    Not thread-safe, but several threads may each use one. The caller makes the device current, and gives memory before
    the first enqueue at new shapes.

    Args:
        rt: the flavour.
        context: TensorRT's execution context.
        precision: of the engine; TensorRT-RTX needs it when the profile changes.
        signature_inputs: the signature's inputs in order, which shapes and addresses are passed for.
        inputs, outputs: the tensors that the engine has.
        largest_memory_bytes: gives the device memory that the largest shapes of a profile need.
    """

    def __init__(
        self,
        rt: TensorRT,
        context: IExecutionContext,
        precision: str,
        signature_inputs: Sequence[TensorSpec],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        largest_memory_bytes: Callable[[int], int],
    ) -> None:
        self._rt = rt
        self._context: IExecutionContext = context
        self._precision = precision
        self._call_lock = rt.call_lock
        self._largest_memory_bytes = largest_memory_bytes
        self._process = os.getpid()
        names = [spec.name for spec in inputs]
        self._inputs = [(index, spec.name) for index, spec in enumerate(signature_inputs) if spec.name in names]
        self._outputs = [spec.name for spec in outputs]
        count = len(signature_inputs)
        self._tensors = [*self._inputs, *((count + index, name) for index, name in enumerate(self._outputs))]
        self._addresses = [0] * (count + len(self._outputs))
        self._profile: int | None = None
        self._memory = (0, 0)
        self._shape_changes = 0
        self._allocators: dict[str, IOutputAllocator] = {}

    def set_shapes(self, profile: int, shapes: Sequence[Sequence[int]], stream: int) -> list[tuple[int, ...]]:
        """Choose the profile and set the inputs' shapes.

        Args:
            profile: index into the profiles.
            shapes: one per input of the signature.
            stream: a stream's handle, on which a change of profile is ordered.

        Returns:
            the outputs' shapes; -1 for a dimension that only values decide.

        Raises:
            ShapeError: TensorRT refuses a shape.
        """
        rt = self._rt
        mark = rt.log.mark()
        self._shape_changes += 1
        with self._call_lock:
            if profile != self._profile:
                with float32_arithmetic(self._precision):
                    done = self._context.set_optimization_profile_async(profile, stream)
                check_return_value(done, f"profile {profile}", rt, since=mark)
                self._profile = profile
            for index, name in self._inputs:
                done = self._context.set_input_shape(name, tuple(shapes[index]))
                check_return_value(
                    done, f"shape {list(shapes[index])} of input '{name}'", rt, error=ShapeError, since=mark
                )
            return [tuple(int(dim) for dim in self._context.get_tensor_shape(name)) for name in self._outputs]

    @property
    def is_worn(self) -> bool:
        """Whether its shapes have changed so often that a new context should replace it.

        TensorRT-RTX 1.6.1 takes 5 KB more host memory at every change of shapes (a network of three layers), until the
        context is destroyed.
        """
        return self._shape_changes >= _MAX_SHAPE_CHANGES

    def memory_bytes(self) -> int:
        """Device memory, in bytes, that an enqueue at the present shapes works in; binding for `set_memory`.

        It is never 0, since TensorRT requires an address even where it needs no memory. TensorRT itself returns 0 also
        where it can't compute the size, as for conditions. Then the size for the profile's largest shapes counts.
        """
        with self._call_lock:
            size = int(self._context.update_device_memory_size_for_shapes())
        if size == 0 and self._profile is not None:
            size = self._largest_memory_bytes(self._profile)
        return max(size, ALIGNMENT_BYTES)

    def set_memory(self, address: int, size_bytes: int) -> None:
        """Set the device memory that later enqueues work in.

        Args:
            address: 256-byte aligned; the caller keeps it alive and gives it to no work that may run at the same time.
            size_bytes: at least `memory_bytes()`.
        """
        if (address, size_bytes) != self._memory:
            self._context.set_device_memory(address, size_bytes)
            self._memory = (address, size_bytes)

    def bind(self, addresses: Sequence[int]) -> None:
        """Set the tensors' addresses, as far as they changed.

        Args:
            addresses: device address of every input and output of the signature, non-null and 256-byte aligned.

        Raises:
            BuildError: TensorRT refuses one.
        """
        present = self._addresses
        for index, name in self._tensors:
            address = addresses[index]
            if address != present[index]:
                present[index] = 0  # unknown until TensorRT has agreed
                if not self._context.set_tensor_address(name, address):
                    check_return_value(None, f"address of '{name}'", self._rt)
                present[index] = address

    def enqueue(self, stream: int) -> None:
        """Enqueue one inference; its memory must stay valid until the stream has passed it.

        Args:
            stream: a CUDA stream's handle, not the legacy default stream's, where TensorRT would synchronise.

        Raises:
            BuildError: TensorRT refuses; the message has its own lines.
        """
        mark = self._rt.log.mark()
        with self._call_lock:
            done = self._context.execute_async_v3(stream)
        if not done:
            check_return_value(False, "enqueue", self._rt, since=mark)

    def why_not_capturable(self, stream: int) -> str:
        """Why an enqueue on this stream can't be captured in a CUDA graph, as far as TensorRT says; else empty."""
        with self._call_lock:
            if self._rt.is_rtx and not self._context.is_stream_capturable(stream):
                return f"{self._rt.title} says that this engine can't be captured at these shapes"
        return ""

    def allocate_on_demand(
        self, names: Sequence[str], allocate: Callable[[int], MemoryT]
    ) -> dict[str, DataDependentOutput[MemoryT]]:
        """Let TensorRT request memory for outputs whose shapes it finds only while it runs.

        Args:
            names: of outputs; the addresses that `bind` sets for them no longer count.
            allocate: gives memory of so many bytes; called during the enqueue, once an output.

        Returns:
            name -> where the next enqueue leaves shape, memory or an error. Call this again before another enqueue.
        """
        rt = self._rt
        mark = rt.log.mark()
        results: dict[str, DataDependentOutput[MemoryT]] = {name: DataDependentOutput() for name in names}
        self._allocators = {name: _allocator_class(rt)(results[name], allocate) for name in names}
        for name, allocator in self._allocators.items():
            check_return_value(
                self._context.set_output_allocator(name, allocator), f"allocator of '{name}'", rt, since=mark
            )
        return results

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        # In a fork the lock may be held by a thread that does not exist there.
        if not is_finalizing() and os.getpid() == self._process:
            self._call_lock.release_when_idle({"context": self.__dict__.pop("_context")})


# One class for all calls: a class is a reference cycle, which would hold results until the garbage collector runs.
@functools.cache
def _allocator_class(
    rt: TensorRT,
) -> Callable[[DataDependentOutput[Any], _Allocate], IOutputAllocator]:
    class Allocator(rt.api.IOutputAllocator):
        def __init__(self, result: DataDependentOutput[Any], allocate: _Allocate) -> None:
            rt.api.IOutputAllocator.__init__(self)
            self._result = result
            self._allocate = allocate

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int | None:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int | None:
            try:
                allocated = self._allocate(max(size, 1))
            except Exception as error:
                self._result.error = error
                return None
            self._result.memory = allocated
            return allocated.address

        def notify_shape(self, tensor_name: str, shape: Dims) -> None:
            self._result.shape = tuple(int(dim) for dim in shape)

    return Allocator
