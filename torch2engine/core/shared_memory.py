"""`SharedMemory`: the name under which several modules find the same working memory.

Enters: a device's number. Leaves: one piece of working memory for each device. Separate from the memory itself because
an option must be made without PyTorch and without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from torch2engine.core.package import public

__all__ = ["SharedMemory"]


class _Memory(Protocol):
    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=_Memory)


@public
class SharedMemory:
    """Working memory that several TensorRT modules share: as large as the largest one needs, not as all of them do.

    Pass the same object to each, as `RuntimeConfig.shared_memory`. Their calls then never overlap on the GPU. A call on
    another stream than the one before waits for that one on the GPU, and the host waits for neither. Threads take turns
    while they enqueue. So share it between modules that follow each other anyway, like the steps of a pipeline, and
    give modules that compute side by side objects of their own.

    Each device has memory of its own, from PyTorch's allocator. It grows with the largest shape of any module; a growth
    waits for the calls in flight and drops the CUDA graphs of all modules, which come again by themselves. The memory
    is freed when each module was deleted or has called `trim`. Results, weights, and the buffers of CUDA graphs are not
    shared, nor is the memory of calls inside a CUDA graph of your own.

    A copy of a module shares with the original. Modules that were pickled together share a new object.

    >>> shared = t2e.SharedMemory()
    >>> config = t2e.RuntimeConfig(shared_memory=shared)
    >>> encoder, decoder = (t2e.TRTModule(engine, runtime_config=config) for _ in range(2))
    >>> shared.memory_bytes  # before the first call
    0
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_device: dict[int, _Memory] = {}

    @property
    def memory_bytes(self) -> int:
        """Device memory, in bytes, on all devices together."""
        return sum(memory.size_bytes for memory in list(self._by_device.values()))

    def on_device(self, index: int, make: Callable[[], T]) -> T:
        """The memory of a device, made when it is first asked for.

        Args:
            index: the device's number.
            make: makes the memory; it is always of one class.
        """
        with self._lock:
            memory = self._by_device.get(index)
            if memory is None:
                memory = self._by_device[index] = make()
            return cast("T", memory)

    def __copy__(self) -> SharedMemory:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedMemory:
        return self

    def __reduce__(self) -> tuple[type[SharedMemory], tuple[()]]:
        return SharedMemory, ()  # another process has devices of its own

    def __repr__(self) -> str:
        return f"SharedMemory({self.memory_bytes} bytes)"
