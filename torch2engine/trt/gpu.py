"""Facts about the GPUs of this machine, as the driver itself gives them.

Enters: nothing. Leaves: `Gpu` values, or an InstallationError that says what is missing and how to install it. Separate
because building, loading and serving all need these facts where torch must not be imported. Only a call of one of these
functions initialises the driver. A process that will fork must not call them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch2engine.core.errors import DeviceError, InstallationError

__all__ = [
    "Gpu",
    "current_gpu_index",
    "describe_free_memory",
    "find_capture_id",
    "free_memory_bytes",
    "list_gpus",
    "load_driver",
    "make_gpu_current",
    "relaxed_capture_mode",
    "require_gpu",
]

CUDA_LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
_NVML = ("nvml.dll",) if sys.platform == "win32" else ("libnvidia-ml.so.1",)

# CUdevice_attribute and CUresult of cuda.h, the same since CUDA 5
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_NOT_INITIALIZED = 3
# CUstreamCaptureStatus of cuda.h, the same since CUDA 10
_CAPTURE_NONE = 0
_CAPTURE_ACTIVE = 1
# CUstreamCaptureMode of cuda.h, the same since CUDA 10.1
_RELAXED = 2


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    Args:
        index: its number as CUDA counts the visible devices.
        name: its product name, e.g. ``"NVIDIA H200"``.
        compute_capability: e.g. ``(9, 0)``.
        driver: the driver's version, e.g. ``"580.159.03"``, or where NVML can't tell it the newest CUDA version that
            the driver supports, e.g. ``"13.0"``.
        memory_bytes: its memory in bytes, used or free.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver: str
    memory_bytes: int


def list_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that this process may use; empty on a machine without one.

    Returns:
        One `Gpu` per visible device, in CUDA's order.
    """
    found = _probe()
    return () if isinstance(found, InstallationError) else found


def require_gpu(index: int = 0) -> Gpu:
    """Give the facts of one GPU.

    Args:
        index: its number as CUDA counts the visible devices.

    Raises:
        InstallationError: it is missing; the message says what was found, and how to install it.
    """
    found = _probe()
    if isinstance(found, InstallationError):
        raise found
    if index >= len(found):
        raise InstallationError(
            f"GPU {index}",
            got=f"{len(found)} GPU{'s' if len(found) > 1 else ''} in this process",
            allowed=f"at least {index + 1}",
            fix=f"use an index below {len(found)}, or show more of them in CUDA_VISIBLE_DEVICES",
        )
    return found[index]


def current_gpu_index() -> int | None:
    """Find the device of the calling thread's CUDA context, without initialising the driver.

    Returns:
        Its number, or None if this thread has not used CUDA.
    """
    cuda = _load_first(CUDA_LIBRARIES)
    device = ctypes.c_int(-1)
    if cuda is None or cuda.cuCtxGetDevice(ctypes.byref(device)) != 0:
        return None
    return device.value


def describe_free_memory() -> str:
    """Say how much memory of the calling thread's current GPU is free, as a clause; empty where no GPU is current."""
    free, total = _free_and_total_bytes()
    return f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB of GPU memory are free" if total else ""


def free_memory_bytes() -> int:
    """How much memory of the calling thread's current GPU is free, in bytes; 0 where no GPU is current."""
    return _free_and_total_bytes()[0]


def _free_and_total_bytes() -> tuple[int, int]:
    cuda = _load_first(CUDA_LIBRARIES)
    free = ctypes.c_size_t()
    total = ctypes.c_size_t()
    if cuda is None or cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0:
        return 0, 0
    return free.value, total.value


def make_gpu_current(index: int) -> None:
    """Make a device current in the calling thread, as its primary context, which CUDA's runtime then uses.

    Args:
        index: its number as CUDA counts the visible devices.

    Raises:
        InstallationError: the driver refuses.
    """
    gpu = require_gpu(index)
    cuda = _load_first(CUDA_LIBRARIES)
    assert cuda is not None, "require_gpu has found it"
    device = ctypes.c_int()
    context = ctypes.c_void_p()
    status = cuda.cuDeviceGet(ctypes.byref(device), index)
    status = status or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    status = status or cuda.cuCtxSetCurrent(context)
    if status:
        raise InstallationError(
            f"GPU {index} ({gpu.name})",
            got=f"no context ({_error_name(cuda, status)})",
            allowed="a GPU that can be used",
            fix="see with `nvidia-smi` whether its memory is full or another process holds it exclusively",
        )


def find_capture_id(stream: int) -> int | None:
    """Tell which CUDA graph capture a stream takes part in; the stream's device is current.

    Args:
        stream: its handle; 0 for the legacy default stream.

    Returns:
        The capture's id, the same for all of its streams and never used again in this process; None if the stream is
        not capturing.

    Raises:
        DeviceError: a forbidden operation has invalidated the capture, or the driver refuses.
        InstallationError: there is no driver.
    """
    cuda = load_driver()
    state = ctypes.c_int(_CAPTURE_NONE)
    number = ctypes.c_uint64()
    # CUDA 11.3 and later; without the CUDA graph and its last nodes
    status = cuda.cuStreamGetCaptureInfo_v2(
        ctypes.c_void_p(stream), ctypes.byref(state), ctypes.byref(number), None, None, None
    )
    if status == 0 and state.value == _CAPTURE_NONE:
        return None
    if status or state.value != _CAPTURE_ACTIVE:
        got = _error_name(cuda, status) if status else "a capture that is no longer valid"
        raise DeviceError(
            "CUDA graph capture",
            got=got,
            allowed="work that can be captured",
            fix="leave what synchronises, allocates or uses the default stream out of the capture, and capture again",
        )
    return number.value


def load_driver() -> ctypes.CDLL:
    """The driver's library, a handle of the caller's own, on which it declares the prototypes that it uses.

    Raises:
        InstallationError: there is none.
    """
    cuda = _load_first(CUDA_LIBRARIES)
    if cuda is None:
        raise _no_driver()
    return cuda


@contextmanager
def relaxed_capture_mode() -> Generator[None]:
    """Let this thread wait for its work and free memory while it, or another thread, captures a CUDA graph.

    CUDA forbids that by default and breaks the capture, since the work that is waited for could be the captured one.
    """
    exchange_mode = _capture_mode_exchanger()
    if exchange_mode is None:  # then nothing can be captured either
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    exchange_mode(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange_mode(ctypes.byref(mode))


@cache
def _capture_mode_exchanger() -> Callable[[Any], int] | None:
    cuda = _load_first(CUDA_LIBRARIES)
    if cuda is None:
        return None
    exchange_mode = cuda.cuThreadExchangeStreamCaptureMode
    exchange_mode.argtypes = (ctypes.POINTER(ctypes.c_int),)
    exchange_mode.restype = ctypes.c_int
    return exchange_mode


def _no_driver() -> InstallationError:
    return InstallationError(
        "NVIDIA driver",
        got=f"no {CUDA_LIBRARIES[0]} that can be loaded",
        allowed="an installed driver",
        fix="install the driver until `nvidia-smi` lists the GPU; start a container with `--gpus all`",
    )


def _probe() -> tuple[Gpu, ...] | InstallationError:
    cuda = _load_first(CUDA_LIBRARIES)
    if cuda is None:
        return _no_driver()
    count = ctypes.c_int(0)
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status:
        fix = "check that `nvidia-smi` works and that CUDA_VISIBLE_DEVICES shows the GPU"
        if status == _NOT_INITIALIZED:
            fix = "CUDA does not survive a fork: start this process with multiprocessing's 'spawn' method"
        return InstallationError(
            "NVIDIA driver", got=f"{_error_name(cuda, status)} when it starts", allowed="a driver that starts", fix=fix
        )
    if not count.value:
        return InstallationError(
            "NVIDIA driver", got="no GPU", allowed="at least one", fix="show one in CUDA_VISIBLE_DEVICES"
        )
    driver = _driver_version(cuda)
    return tuple(_describe(cuda, index, driver) for index in range(count.value))


def _describe(cuda: ctypes.CDLL, index: int, driver: str) -> Gpu:
    device = ctypes.c_int()
    value = ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability: list[int] = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(index, name.value.decode(errors="replace"), (capability[0], capability[1]), driver, memory.value)


def _driver_version(cuda: ctypes.CDLL) -> str:
    nvml = _load_first(_NVML)
    if nvml is not None and nvml.nvmlInit_v2() == 0:
        text = ctypes.create_string_buffer(80)
        status = nvml.nvmlSystemGetDriverVersion(text, len(text))
        nvml.nvmlShutdown()
        if status == 0:
            return text.value.decode(errors="replace")
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"error {status}"


def _load_first(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
