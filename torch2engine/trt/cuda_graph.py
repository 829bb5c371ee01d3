"""Work as a CUDA graph: captured once, launched again and again at the same addresses.

Enters: an execution context with its addresses, or other work, and a stream. Leaves: a `CudaGraph`. Separate because it
speaks to the driver itself. PyTorch's CUDAGraph puts the device's random generator into a capturing state, in which
another thread can't draw random numbers. And a serving process has no PyTorch.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.trt.context import Context
from torch2engine.trt.gpu import load_driver, make_gpu_current

__all__ = ["CudaGraph", "DedicatedStream", "NotCapturable", "WorkEvent", "capture_inference", "collector_waits"]

# CUstream_flags, CUevent_flags, CUstreamCaptureMode, CUevent_record_flags and CUresult of cuda.h (CUDA 12 and 13)
_NON_BLOCKING = 1
_WITHOUT_TIMING = 2
_THREAD_LOCAL = 1
_EXTERNAL = 1
_INVALID_CONTEXT = 201


class NotCapturable(Exception):
    """An enqueue can't be captured; the text says why."""


class DedicatedStream:
    """A stream of the current device that no other code can be given.

    PyTorch hands out its streams again after 32. If other code put work on a stream during a capture, it would become
    part of the CUDA graph instead of running.

    Raises:
        BuildError: the driver refuses.
    """

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        self._process = os.getpid()
        if status := _driver().cuStreamCreate(ctypes.byref(self._handle), _NON_BLOCKING):
            raise BuildError(
                "CUDA stream",
                got=_error(status),
                allowed="one that can be made",
                fix="see with `nvidia-smi` whether the GPU is usable",
            )

    @property
    def handle(self) -> int:
        assert self._handle.value is not None, "made by the driver"
        return self._handle.value

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        if not is_finalizing() and self._handle and os.getpid() == self._process:
            _driver().cuStreamDestroy_v2(self._handle)  # once its work is through


class WorkEvent:
    """A point in the work of a stream, by the stream's handle: PyTorch's own events take streams that cost 7 µs.

    Args:
        gpu_index: the device's number; it is the current one.

    Raises:
        BuildError: the driver refuses.
    """

    def __init__(self, gpu_index: int) -> None:
        self._handle = ctypes.c_void_p()
        self._gpu_index = gpu_index
        self._process = os.getpid()
        driver = _driver()
        self._record = driver.cuEventRecord
        self._wait = driver.cuStreamWaitEvent
        self._synchronize = driver.cuEventSynchronize
        self._call(driver.cuEventCreate, ctypes.byref(self._handle), _WITHOUT_TIMING)

    def record(self, stream: int) -> None:
        """Put the event behind all work that a stream has now; an earlier record no longer counts."""
        self._call(self._record, self._handle, stream)

    def let_wait(self, stream: int) -> None:
        """Let later work of a stream wait for the event, if it was recorded."""
        self._call(self._wait, stream, self._handle, 0)

    def synchronize(self) -> None:
        """Wait for the event, if it was recorded."""
        self._call(self._synchronize, self._handle)

    def _call(self, function: Any, *arguments: Any) -> None:
        status = function(*arguments)
        if status == _INVALID_CONTEXT:  # a thread that has not used CUDA yet
            make_gpu_current(self._gpu_index)
            status = function(*arguments)
        if status:
            raise BuildError(
                "CUDA event",
                got=_error(status),
                allowed="one that works",
                fix="see with `nvidia-smi` whether the GPU is usable",
            )

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        if not is_finalizing() and self._handle and os.getpid() == self._process:
            _driver().cuEventDestroy_v2(self._handle)


@contextmanager
def collector_waits() -> Generator[None]:
    """Keep the garbage collector from running: destructors may do what a capture forbids."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def capture_inference(context: Context, addresses: Sequence[int], stream: int, event: int, gpu_index: int) -> CudaGraph:
    """Capture one inference at these addresses.

    After any error the context may be unusable.

    Args:
        context: at its shapes, with memory, and enqueued before.
        addresses: as for `Context.bind`; they and the context's memory must stay valid as long as the graph is used.
        stream: handle of a stream that no other code uses meanwhile, not a default stream.
        event: handle of an event that every launch records when the work is through; 0 for none.
        gpu_index: the device's number.

    Raises:
        NotCapturable: TensorRT or the driver refused.
        BuildError: TensorRT refuses an address.
    """
    with collector_waits():
        if reason := context.why_not_capturable(stream):
            raise NotCapturable(reason)
        context.bind(addresses)
        return CudaGraph(context.enqueue, stream, event, gpu_index)


class CudaGraph:
    """Captured work, such as an inference.

    It holds no reference to the memory and the contexts that it was captured with. Launches of one graph run one after
    the other. Not thread-safe.

    Args:
        enqueue: puts the work on a stream by its handle; called once.
        stream: handle of a stream without other work, not a default stream.
        event: handle of an event that every launch records when the work is through; 0 for none.
        gpu_index: the device's number.

    Raises:
        NotCapturable: the driver or `enqueue` refused.
    """

    def __init__(self, enqueue: Callable[[int], None], stream: int, event: int, gpu_index: int) -> None:
        self._handle = ctypes.c_void_p()
        self._gpu_index = gpu_index
        self._process = os.getpid()
        driver = _driver()
        self._launch = driver.cuGraphLaunch
        template = ctypes.c_void_p()  # of the executable graph; the driver's CUgraph
        _call(driver.cuStreamBeginCapture_v2, stream, _THREAD_LOCAL)
        try:
            enqueue(stream)
            if event:
                _call(driver.cuEventRecordWithFlags, event, stream, _EXTERNAL)
        except BaseException as error:  # Ctrl-C too must not leave the stream capturing
            if driver.cuStreamEndCapture(stream, ctypes.byref(template)) == 0:
                driver.cuGraphDestroy(template)
            if isinstance(error, (Torch2EngineError, RuntimeError)):
                raise NotCapturable(str(error)) from error
            raise  # a signal handler's, say
        _call(driver.cuStreamEndCapture, stream, ctypes.byref(template))
        try:
            _call(driver.cuGraphInstantiateWithFlags, ctypes.byref(self._handle), template, 0)
        finally:
            driver.cuGraphDestroy(template)

    def launch(self, stream: int) -> None:
        """Run the work on a stream.

        Args:
            stream: its handle; 0 for the legacy default stream of the device, which is then the current one.

        Raises:
            BuildError: the driver refuses.
        """
        status = self._launch(self._handle, stream)
        if status == _INVALID_CONTEXT:  # a thread that has not used CUDA yet
            make_gpu_current(self._gpu_index)
            status = self._launch(self._handle, stream)
        if status:
            raise BuildError(
                "launch of a CUDA graph", got=_error(status), allowed="a launch", fix="RuntimeConfig(cuda_graphs=False)"
            )

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        if not is_finalizing() and self._handle and os.getpid() == self._process:
            _driver().cuGraphExecDestroy(self._handle)


def _call(function: Any, *arguments: Any) -> None:
    if status := function(*arguments):
        raise NotCapturable(f"{function.__name__} failed: {_error(status)}")


def _error(status: int) -> str:
    text = ctypes.c_char_p()
    if _driver().cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"error {status}"


# Handles are 64 bits wide, which ctypes does not know by itself; prototypes as in cuda.h.
@cache
def _driver() -> ctypes.CDLL:
    driver = load_driver()
    handle = ctypes.c_void_p
    prototypes = {
        "cuStreamCreate": (ctypes.POINTER(handle), ctypes.c_uint),
        "cuStreamDestroy_v2": (handle,),
        "cuStreamBeginCapture_v2": (handle, ctypes.c_int),
        "cuStreamEndCapture": (handle, ctypes.POINTER(handle)),
        "cuEventCreate": (ctypes.POINTER(handle), ctypes.c_uint),
        "cuEventRecord": (handle, handle),
        "cuEventRecordWithFlags": (handle, handle, ctypes.c_uint),
        "cuEventSynchronize": (handle,),
        "cuEventDestroy_v2": (handle,),
        "cuStreamWaitEvent": (handle, handle, ctypes.c_uint),
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
