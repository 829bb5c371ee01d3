"""The page-locked memory and the events that one call holds from its start to its end.

Enters: sizes. Leaves: memory that is used again and again. Separate from the stream executors because a call uses its
memory until its caller has the results. By then, its executor works on the next calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from torch2engine.serving.processor.arrays import Array, CheckedCall, Shape
from torch2engine.serving.processor.cuda import Bytes, Cuda, Memory
from torch2engine.trt.memory import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from torch2engine.serving.processor.array_stream_executor import ArrayStreamExecutor

__all__ = ["Layout", "PendingCall", "Result", "StagingBuffers", "Timings", "as_bytes", "make_layout"]


class Timings(NamedTuple):
    """The time of each part of one inference, in milliseconds; all but `queue_ms` by the GPU's clock.

    queue_ms: the rest of the time from the checked call to its last byte: staging in page-locked memory, waiting for
        other calls, and the host's work.
    copy_in_ms: inputs to the device.
    compute_ms: the engine.
    copy_out_ms: outputs to the host.
    """

    queue_ms: float
    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


class Layout(NamedTuple):
    """Tensors one after the other in one piece of memory, each 256-byte aligned."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    total: int


def make_layout(sizes: Sequence[int]) -> Layout:
    """Place tensors of these sizes in bytes; an empty one has an address too."""
    offsets: list[int] = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += -(-max(size, 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return Layout(tuple(offsets), tuple(sizes), end)


def as_bytes(array: Array) -> Bytes:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)


class StagingBuffers:
    """Page-locked memory and events for one call at a time.

    Args:
        cuda: the device, entered.
        blocking: whether a thread that waits for the end sleeps rather than spins.
    """

    def __init__(self, cuda: Cuda, blocking: bool) -> None:
        self.blocking = blocking
        self._cuda = cuda
        self.begun = cuda.event()
        self.ready = cuda.event()
        self.computed = cuda.event()
        self.done = cuda.event(blocking)
        self.inputs: Bytes = cuda.pinned(0)
        self.outputs: Bytes = cuda.pinned(0)

    def reserve(self, inputs: int, outputs: int) -> None:
        """Provide at least this many bytes for inputs and for outputs; nothing may be using the memory."""
        if len(self.inputs) < inputs:
            self.inputs = self._cuda.pinned(inputs)
        if len(self.outputs) < outputs:
            self.outputs = self._cuda.pinned(outputs)

    def timings(self, seconds: float) -> Timings:
        """The time of each part of the inference; call it after `done` has passed."""
        queue_ms = max(0.0, seconds * 1e3 - self.done.ms_since(self.begun))
        return Timings(
            queue_ms,
            self.ready.ms_since(self.begun),
            self.computed.ms_since(self.ready),
            self.done.ms_since(self.computed),
        )


@dataclass
class Result:
    """One output: where its bytes are after the call, and where the caller wants them.

    Args:
        name: the output's name.
        dtype, shape: the output's dtype and shape.
        staged: the page-locked bytes to which the output is copied; None if it is copied straight to `target`.
        target: the caller's own array; None for a fresh one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    staged: Bytes | None
    target: Array | None


@dataclass
class PendingCall:
    """One call under way.

    Args:
        call: the caller's arrays. Arrays that are page-locked themselves are read until the call is done.
        staging: the call's page-locked memory and events.
        out: the caller's own arrays, by output.
        began: the time of its start, by time.perf_counter().
        inputs: where its inputs lie, in page-locked memory and on the device alike.
        direct: the inputs that are page-locked themselves, by number.
        results: the outputs; empty before the call is enqueued.
        device_memory: memory that must live until the call is done.
        executor: the executor that runs the call; None before it is chosen.
    """

    call: CheckedCall
    staging: StagingBuffers
    out: dict[str, Array]
    began: float
    inputs: Layout
    direct: frozenset[int] = frozenset()
    results: list[Result] = field(default_factory=list[Result])
    device_memory: list[Memory] = field(default_factory=list[Memory])
    executor: ArrayStreamExecutor | None = None
