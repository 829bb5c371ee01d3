"""One inference as a CUDA graph: captured once, launched again and again at the same addresses.

Enters: a function that enqueues on a stream. Leaves: a `Graph`. A room of its own because it speaks to the driver
itself: PyTorch's own CUDAGraph puts the device's random generator into a capturing state, in which another thread that
draws random numbers meanwhile gets an error, and a serving process has no PyTorch at all.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.trt.gpu import load_driver, make_gpu_current

__all__ = ["Graph", "NotCapturable", "OwnStream"]

# CUstream_flags, CUstreamCaptureMode, CUevent_record_flags and CUresult of cuda.h (CUDA 12 and 13)
_NON_BLOCKING = 1
_THREAD_LOCAL = 1
_EXTERNAL = 1
_INVALID_CONTEXT = 201


class NotCapturable(Exception):
    """An enqueue can't be captured; the text says why."""


class OwnStream:
    """A stream of the current device that nobody else can have.

    PyTorch hands out its streams again after 32: work that somebody puts on such a stream while it is captured would
    vanish into the graph instead of being done.

    Raises:
        BuildError: the driver refuses.
    """

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        self._process = os.getpid()
        if status := _driver().cuStreamCreate(ctypes.byref(self._handle), _NON_BLOCKING):
            raise BuildError("CUDA stream", got=_error(status), fix="see with `nvidia-smi` whether the GPU is usable")

    @property
    def handle(self) -> int:
        assert self._handle.value is not None, "made by the driver"
        return self._handle.value

    def __del__(self) -> None:
        if self._handle and os.getpid() == self._process and not sys.is_finalizing():
            _driver().cuStreamDestroy_v2(self._handle)  # once its work is through


class Graph:
    """A captured inference.

    It holds no reference to the memory and the context that it was captured with. Launches of one graph run one after
    the other. Not thread-safe.

    Args:
        enqueue: puts the work on a stream by its handle; called once.
        stream: handle of a stream without work of its own, not a default stream.
        event: handle of an event that every launch records when the work is through; 0 for none.
        index: the device's number.

    Raises:
        NotCapturable: the driver or `enqueue` refused.
    """

    def __init__(self, enqueue: Callable[[int], None], stream: int, event: int, index: int) -> None:
        self._handle = ctypes.c_void_p()
        self._index = index
        self._process = os.getpid()
        self._launch = (driver := _driver()).cuGraphLaunch
        graph = ctypes.c_void_p()
        _call(driver.cuStreamBeginCapture_v2, stream, _THREAD_LOCAL)
        try:
            enqueue(stream)
            if event:
                _call(driver.cuEventRecordWithFlags, event, stream, _EXTERNAL)
        except BaseException as error:  # Ctrl-C too must not leave the stream capturing
            if driver.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0:
                driver.cuGraphDestroy(graph)
            if isinstance(error, (Torch2EngineError, RuntimeError)):
                raise NotCapturable(str(error)) from error
            raise  # a signal handler's, say
        _call(driver.cuStreamEndCapture, stream, ctypes.byref(graph))
        try:
            _call(driver.cuGraphInstantiateWithFlags, ctypes.byref(self._handle), graph, 0)
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self, stream: int) -> None:
        """Run the inference on a stream.

        Args:
            stream: its handle; 0 for the legacy default stream of the device, which is then the current one.

        Raises:
            BuildError: the driver refuses.
        """
        status = self._launch(self._handle, stream)
        if status == _INVALID_CONTEXT:  # a thread that has not used CUDA yet
            make_gpu_current(self._index)
            status = self._launch(self._handle, stream)
        if status:
            raise BuildError("launch of a CUDA graph", got=_error(status), fix="RuntimeConfig(cuda_graphs=False)")

    def __del__(self) -> None:
        if self._handle and os.getpid() == self._process and not sys.is_finalizing():
            _driver().cuGraphExecDestroy(self._handle)


def _call(function: Any, *arguments: Any) -> None:
    if status := function(*arguments):
        raise NotCapturable(f"{function.__name__} failed: {_error(status)}")


def _error(status: int) -> str:
    text = ctypes.c_char_p()
    if _driver().cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"error {status}"


# Handles are 64 bits wide, which ctypes must be told; prototypes as in cuda.h.
@cache
def _driver() -> ctypes.CDLL:
    driver = load_driver()
    handle = ctypes.c_void_p
    prototypes = {
        "cuStreamCreate": (ctypes.POINTER(handle), ctypes.c_uint),
        "cuStreamDestroy_v2": (handle,),
        "cuStreamBeginCapture_v2": (handle, ctypes.c_int),
        "cuStreamEndCapture": (handle, ctypes.POINTER(handle)),
        "cuEventRecordWithFlags": (handle, handle, ctypes.c_uint),
        "cuGraphInstantiateWithFlags": (ctypes.POINTER(handle), handle, ctypes.c_ulonglong),
        "cuGraphLaunch": (handle, handle),
        "cuGraphDestroy": (handle,),
        "cuGraphExecDestroy": (handle,),
        "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    }
    for name, arguments in prototypes.items():
        getattr(driver, name).argtypes = arguments
        getattr(driver, name).restype = ctypes.c_int
    return driver
