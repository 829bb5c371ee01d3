"""The CUDA graphs of one prepared shape, and which calls deserve another one.

Enters: the addresses of calls, and what their enqueues cost. Leaves: yes or no for a CUDA graph at these addresses, or
for one with buffers that calls copy into. Separate from the stream executor because nothing here touches a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch2engine.trt.cuda_graph import CudaGraph

__all__ = ["ShapeGraphs", "StaticBufferGraph"]

Addresses = tuple[int, ...]

# Addresses get a CUDA graph at their third call: a capture costs about four enqueues (1 ms for ResNet-50 on an H200).
_SIGHTINGS = 3
_SIGHTINGS_BESIDE_STATIC_BUFFERS = 8  # graphs with static buffers, which only add the copies
_MAX_ADDRESSES_COUNTED = 64
# Loops cycle through few addresses, since PyTorch's allocator reuses them: two where shapes stay, up to twenty where
# sixty-four shapes come in random order.
_MAX_GRAPHS = 16
# With more addresses than that, new ones are counted only after this many calls without a graph. More captures would
# cost more than they save.
_MISSES_BEFORE_REPLACEMENT = 1024
# Copying in and out costs about 20 µs of host time, and device time by bytes. An enqueue that takes less gets no static
# buffers.
_COPY_SECONDS = 50e-6
_COPY_BYTES_PER_SECOND = 1e12


@dataclass(frozen=True)
class StaticBufferGraph:
    """A CUDA graph with buffers of its own.

    Calls copy into `inputs`, and from `outputs` unless these are the results themselves.
    """

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    graph: CudaGraph


class ShapeGraphs:
    """The CUDA graphs of one set of input shapes on one stream. Not thread-safe."""

    def __init__(self) -> None:
        self.by_addresses: dict[Addresses, CudaGraph] = {}
        self.static_buffers: StaticBufferGraph | None = None
        self._sightings: dict[Addresses, int] = {}
        self._misses = 0
        self._enqueue_seconds = math.inf
        self._copied_bytes: float | None = None

    def __len__(self) -> int:
        return len(self.by_addresses) + (self.static_buffers is not None)

    @property
    def is_full(self) -> bool:
        """Whether the next graph replaces all present ones."""
        return len(self.by_addresses) >= _MAX_GRAPHS

    def note_enqueue(self, seconds: float) -> None:
        """Note how long the host was busy with an enqueue."""
        self._enqueue_seconds = min(self._enqueue_seconds, seconds)

    def count_sighting(self, addresses: Addresses) -> bool:
        """Count a call at these addresses; True if they were called so often that a graph of their own pays."""
        if not all(addresses):
            return False
        if self.is_full:
            self._misses += 1
            if self._misses < _MISSES_BEFORE_REPLACEMENT:
                return False
        if len(self._sightings) >= _MAX_ADDRESSES_COUNTED:
            self._sightings.clear()
        times = self._sightings.get(addresses, 0) + 1
        self._sightings[addresses] = times
        return times >= (_SIGHTINGS if self.static_buffers is None else _SIGHTINGS_BESIDE_STATIC_BUFFERS)

    def add(self, addresses: Addresses, graph: CudaGraph) -> None:
        """Take a graph for these addresses."""
        self.by_addresses[addresses] = graph
        self._sightings.pop(addresses, None)
        self._misses = 0

    def copying_pays(self, is_forced: bool, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
        """Whether static buffers, with copies in and out, beat an enqueue.

        Args:
            is_forced: whether to use them wherever they work.
            inputs, outputs: tensors of a call's shapes and dtypes.
        """
        if self._copied_bytes is None:
            sizes = [tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs)]
            self._copied_bytes = sum(sizes) if all(sizes) else math.inf  # An empty tensor can't be copied by address.
        if is_forced:
            return self._copied_bytes < math.inf
        return self._enqueue_seconds > _COPY_SECONDS + self._copied_bytes / _COPY_BYTES_PER_SECOND

    def drop(self) -> None:
        """Forget the graphs; none of them may be running."""
        self.by_addresses.clear()
        self.static_buffers = None

    def reset(self) -> None:
        """Forget the graphs and the counted addresses."""
        self.drop()
        self._sightings.clear()
