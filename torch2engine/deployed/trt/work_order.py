"""The order of the work in one piece of working memory, whichever stream it comes from.

Enters: a device. Leaves: memory from PyTorch's allocator, and the event behind its latest work. Separate from the
stream executor because the executors of several modules may share one.
"""

from __future__ import annotations

from functools import partial

import torch

from torch2engine.deployed.trt.output_tensors import TensorMemory, allocate_memory
from torch2engine.trt.working_memory import WorkingMemory

__all__ = ["WorkOrder"]


class WorkOrder:
    """Working memory, and what its next work must wait for. Whoever reads or writes it holds `memory.lock`.

    Args:
        device: where it is; the current one.
        stream: without work; the event is first recorded on it.

    Attributes:
        memory: that the work is done in.
        done: the event behind the latest work. Every work waits for it, unless it is on the stream of `last_handle`.
        last_handle: of the stream whose own order is enough; None if there is none.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.done = torch.cuda.Event()
        self.done.record(stream)  # makes it, so that graphs can take its handle
        self.last_handle: int | None = None
        self.memory: WorkingMemory[TensorMemory] = WorkingMemory(
            partial(allocate_memory, device), self.done.synchronize
        )

    @property
    def size_bytes(self) -> int:
        """Device memory that it has now."""
        return self.memory.size_bytes
