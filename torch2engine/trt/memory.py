"""Device memory for TensorRT: its alignment, the interface of allocators, and the signs of a lack of memory.

Enters: nothing. Leaves: the rules that everything which allocates for TensorRT follows. Separate because PyTorch's
allocator and pycuda both serve TensorRT, and neither may be imported here.
"""

from __future__ import annotations

import re
from typing import Protocol, TypeVar

__all__ = ["ALIGNMENT_BYTES", "FREE_MEMORY", "DeviceMemory", "MemoryT", "means_out_of_memory"]

ALIGNMENT_BYTES = 256  # of every address that TensorRT is given

FREE_MEMORY = "free GPU memory, or build with a smaller max in the profiles"

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|out-of-memory|insufficient (?:device |GPU |workspace |memory)|bad_alloc|cudaMalloc"
    r"|failed to allocate|allocation fail|workspace limit|CUDA_ERROR_OUT_OF_MEMORY|MEM_ALLOC_FAILED",
    re.IGNORECASE,
)


class DeviceMemory(Protocol):
    """A piece of device memory, aligned to `ALIGNMENT_BYTES`, that is freed with its last reference."""

    @property
    def address(self) -> int:
        """Its device address."""
        ...

    @property
    def size_bytes(self) -> int:
        """How many bytes may be used."""
        ...


MemoryT = TypeVar("MemoryT", bound=DeviceMemory)


def means_out_of_memory(line: str) -> bool:
    """Tell whether a line of TensorRT's log names memory as the cause of a failure."""
    return _OUT_OF_MEMORY.search(line) is not None
