"""The only door to pycuda: a device's primary context, streams, events, and memory on either side.

Enters: a device's number. Leaves: a `Cuda` that is entered around every piece of work, and the objects made in it.
Separate because pycuda's objects may only be made, used and dropped while their context is current in the same thread.
The objects that leave this file keep that rule, whichever thread drops them. Only primary contexts are used, since
CUDA's runtime, and so TensorRT and PyTorch, use them too. Pointers of another context would mean nothing to them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torch2engine.core.errors import BuildError, InstallationError
from torch2engine.trt.gpu import load_driver, relaxed_capture_mode, require_gpu
from torch2engine.trt.memory import FREE_MEMORY

__all__ = ["Bytes", "Cuda", "Event", "Memory", "Stream", "find_cuda"]

Bytes: TypeAlias = "npt.NDArray[np.uint8]"

# CUstream_flags, CUevent_flags, CUpointer_attribute and CUmemorytype of cuda.h (CUDA 12 and 13)
_NON_BLOCKING = 1
_BLOCKING_SYNC = 1
_MEMORY_TYPE = 2
_RANGE_START = 11
_RANGE_SIZE = 12
_HOST = 1
_CURAND = "libcurand.so.10"
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE

_lock = threading.Lock()


def _import_pycuda() -> Any:
    """pycuda.driver.

    Raises:
        InstallationError: it is missing or broken; the message says how to install it.
    """
    fix = (
        "`pip install 'torch2engine[processor]'`, "
        "or on a host that only serves `pip install -r requirements/serving.txt`"
    )
    _load_curand()
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        own = (error.name or "").partition(".")[0] == "pycuda"
        got = "no such package" if own else f"no module {error.name}, which it needs"
        raise InstallationError("pycuda", got=got, allowed="an installed pycuda", fix=fix) from error
    except (ImportError, OSError) as error:  # its shared library, made for another CUDA or numpy
        raise InstallationError("pycuda", got=f"'{error}'", allowed="a library that can be loaded", fix=fix) from error


def _load_curand() -> None:
    """Load the library that pycuda (2026.1) is linked with; NVIDIA's wheels keep it outside of the loader's path."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [str(path) for folder in folders for path in sorted(Path(folder).glob(f"*/lib/{_CURAND}"))]
    for name in (_CURAND, *found):  # the loader's own first
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        break


def find_cuda(index: int) -> Cuda:
    """The device's primary context; one for the whole process, which keeps it until its end.

    Args:
        index: the device's number as CUDA counts the visible devices.

    Raises:
        InstallationError: no such GPU, no pycuda, or the driver makes no context.
    """
    require_gpu(index)
    driver = _import_pycuda()
    with _lock:  # or two first threads would make two contexts
        return _retain_primary_context(index, os.getpid(), driver)


@functools.cache
def _retain_primary_context(index: int, process: int, driver: Any) -> Cuda:
    try:
        driver.init()
        context = driver.Device(index).retain_primary_context()
    except driver.Error as error:
        raise InstallationError(
            f"GPU {index}",
            got=f"no context ('{error}')",
            allowed="a GPU that can be used",
            fix="see with `nvidia-smi` whether its memory is full or another process holds it exclusively",
        ) from error
    _keep_forever(context)  # pycuda 2026.1 ends it by cuCtxDetach, which is not for primary contexts
    return Cuda(index, driver, context)


def _keep_forever(made: object) -> None:
    """Leak an object of pycuda: where its context can't be made current, its destructor would abort."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))


class Cuda:
    """A device's primary context; a context manager that makes it current in this thread, then restores the former.

    Threads may share it, and it may be entered again while it is entered.

    Args:
        index: the device's number.
        driver: pycuda.driver.
        context: pycuda's, of the device's primary context.

    Raises:
        BuildError: on leaving, in place of the pycuda.driver.Error that ended the work.
    """

    def __init__(self, index: int, driver: Any, context: Any) -> None:
        self.index = index
        self.process = os.getpid()
        self._driver = driver
        self._context = context

    @property
    def is_gone(self) -> bool:
        """Whether nothing may be freed any more: in a fork, or when Python ends."""
        return sys.is_finalizing() or os.getpid() != self.process

    def __enter__(self) -> Cuda:
        self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.pop()
        if isinstance(error, self._driver.Error):
            memory = isinstance(error, self._driver.MemoryError)
            raise BuildError(
                f"GPU {self.index}",
                got=f"'{error}'",
                allowed="work that the driver takes",
                fix=FREE_MEMORY if memory else "start the process again: a CUDA context does not survive this",
                out_of_memory=memory,
            ) from error

    # The methods below are called while the context is entered.

    def stream(self) -> Stream:
        """A stream of its own, which never waits for the legacy default stream."""
        return Stream(self, self._driver.Stream(_NON_BLOCKING))

    def event(self, blocking: bool = False) -> Event:
        """An event with a clock; `blocking` waits sleep rather than spin, some 20 µs longer."""
        return Event(self, self._driver.Event(_BLOCKING_SYNC if blocking else 0))

    def memory(self, size_bytes: int) -> Memory:
        """Device memory, 256-byte aligned, that is freed with its last reference; at least one byte."""
        with relaxed_capture_mode():
            return Memory(self, self._driver.mem_alloc(max(size_bytes, 1)), size_bytes)

    def pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory, that is freed with the last array on it."""
        if not size_bytes:
            return np.empty(0, np.uint8)
        with relaxed_capture_mode():
            made = self._driver.pagelocked_empty(size_bytes, np.uint8, mem_flags=_PORTABLE)
        return np.asarray(_Pinned(self, made))

    def copy_in(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy to the device on a stream; page-locked memory must stay as it is until the stream has passed it."""
        self._driver.memcpy_htod_async(address, source, stream.handle_object)

    def copy_out(self, target: Bytes, address: int, stream: Stream) -> None:
        """Copy from the device on a stream."""
        self._driver.memcpy_dtoh_async(target, address, stream.handle_object)

    def is_pinned(self, array: npt.NDArray[Any]) -> bool:
        """Whether a contiguous array lies in one piece of page-locked memory, whoever locked it."""
        ask = _pointer_attribute()
        address = ctypes.c_void_p(array.ctypes.data)
        kind = ctypes.c_uint()
        start = ctypes.c_uint64()
        size = ctypes.c_size_t()
        if ask(ctypes.byref(kind), _MEMORY_TYPE, address) or kind.value != _HOST:
            return False
        if ask(ctypes.byref(start), _RANGE_START, address) or ask(ctypes.byref(size), _RANGE_SIZE, address):
            return False
        first = array.ctypes.data
        return start.value <= first and first + array.nbytes <= start.value + size.value


@functools.cache
def _pointer_attribute() -> Any:
    found = load_driver().cuPointerGetAttribute
    found.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    found.restype = ctypes.c_int
    return found


class _Owned:
    """Drops pycuda's object while its context is current: otherwise pycuda would leak it, with a warning."""

    def __init__(self, cuda: Cuda, made: Any) -> None:
        self._cuda = cuda
        self._made = made

    def __del__(self) -> None:
        # In every destructor here, Python may be ending, or the constructor may have failed.
        made = self.__dict__.pop("_made", None)
        if made is None:
            return
        if self._cuda.is_gone:
            _keep_forever(made)
            return
        with self._cuda, relaxed_capture_mode():
            self._free(made)
            del made

    def _free(self, made: Any) -> None:
        """Free memory explicitly; pycuda destroys its other objects by itself."""


class Stream(_Owned):
    """A CUDA stream."""

    @property
    def handle(self) -> int:
        """CUDA's handle, for TensorRT."""
        return int(self._made.handle)

    @property
    def handle_object(self) -> Any:
        """pycuda's stream."""
        return self._made

    def wait(self) -> None:
        """Wait until its work is through."""
        with relaxed_capture_mode():
            self._made.synchronize()


class Event(_Owned):
    """A CUDA event."""

    def record(self, stream: Stream) -> None:
        """Record the work that is on a stream by now."""
        self._made.record(stream.handle_object)

    def wait(self) -> None:
        """Wait for the recorded work; other threads run on."""
        with relaxed_capture_mode():
            self._made.synchronize()

    def ms_since(self, start: Event) -> float:
        """Milliseconds on the device between two events that have passed."""
        return float(self._made.time_since(start._made))


class Memory(_Owned):
    """Device memory."""

    def __init__(self, cuda: Cuda, made: Any, size_bytes: int) -> None:
        super().__init__(cuda, made)
        self.address = int(made)
        self.size_bytes = size_bytes

    def _free(self, made: Any) -> None:
        made.free()


class _Pinned(_Owned):
    """The owner of page-locked memory, which arrays on it hold."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return dict(self._made.__array_interface__)

    def _free(self, made: Any) -> None:
        made.base.free()
