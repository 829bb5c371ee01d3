"""The process's switches for arithmetic and its random generators, set for a while and then restored.

Enters: nothing. Leaves: a process in which a model computes exactly what its code says. Afterwards the process is as it
was. Separate from `undisturbed` because these switches belong to the process and not to a module; a refit needs them
without a module.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.threads import is_idle_worker

__all__ = ["exact_arithmetic", "full_float32", "grad_and_autocast_off", "process_state_lock", "restored_random_state"]

# The switches below belong to the process. A second thread would save the settings of the first one as the user's. And
# torch's exporters, which run inside, patch global state as well (torch.onnx: CURRENT_PATCHER).
_LOCK = ForkSafeLock(reentrant=True)
# Their threads watch progress bars, files and debuggers, and draw no random numbers.
_HELPERS = (  # modules and packages whose threads run none of the user's code
    *("IPython", "debugpy", "ipykernel", "pydevd", "rich", "torch2engine", "tornado", "tqdm", "zmq"),
    *("multiprocessing.queues", "multiprocessing.resource_sharer", "torch.utils.data._utils.pin_memory"),
)
_FLOAT32_SWITCHES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
_MKL_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p"),
    *("log2", "sin", "sinh", "cosh", "sqrt", "tan", "tanh"),
)


@contextmanager
def process_state_lock() -> Generator[None]:
    """Let one thread at a time change the process's state; a thread that holds the lock may take it again.

    Take it before any lock of one's own that is held while `exact_arithmetic` or `undisturbed` runs.
    """
    with _LOCK:
        yield


@contextmanager
def exact_arithmetic() -> Generator[None]:
    """Compute the body in the dtypes that it names, without grad: no autocast, no TF32."""
    with process_state_lock(), grad_and_autocast_off(), _attention_by_its_formula(), full_float32():
        yield


@contextmanager
def restored_random_state() -> Generator[None]:
    """Put the random generators of Python, NumPy, PyTorch's CPU and all GPUs back after the body.

    They belong to the whole process. Where another thread may have drawn from them, they are not put back, since that
    thread would draw the same numbers again.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    cpu_state = torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    is_alone = not any(map(_may_draw, threading.enumerate()))  # what the body starts is part of it
    try:
        yield
    finally:
        if is_alone:
            _set_random_state(python_state, numpy_state, cpu_state, gpu_states)


def _set_random_state(
    python_state: Any, numpy_state: Any, cpu_state: torch.Tensor, gpu_states: list[torch.Tensor] | None
) -> None:
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(cpu_state)
    if gpu_states is not None:
        torch.cuda.set_rng_state_all(gpu_states)


def _may_draw(thread: threading.Thread) -> bool:
    """Whether a thread may draw random numbers: another one, none of a helper package, and no idle one of a pool."""
    if thread is threading.current_thread() or is_idle_worker(thread):
        return False
    target = getattr(thread, "_target", None)
    owner = type(thread) if target is None else target
    module = f"{getattr(owner, '__module__', '')}."
    return not any(module.startswith(f"{helper}.") for helper in _HELPERS)


@contextmanager
def grad_and_autocast_off() -> Generator[None]:
    """Run the body without grad, inference mode and autocast, and return to the current device afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # its tensors have no versions, and can't be exported
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        yield


@contextmanager
def _attention_by_its_formula() -> Generator[None]:
    """Compute attention by its formula, without fused kernels.

    The encoder's fast path zeroes padded rows. The fused attention kernels for CUDA pad sequences to multiples of 8.
    torch.export turns that into conditions on a dynamic sequence length (torch 2.11).
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with cast("AbstractContextManager[Any]", sdpa_kernel(SDPBackend.MATH)):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def full_float32() -> Generator[None]:
    """Compute float32 in float32 on CPU and GPU: not in TF32, not in bfloat16, not by an inaccurate kernel.

    Hold `process_state_lock` meanwhile.
    """
    _choose_mkl_kernels()
    settings = _Float32Settings.read()
    settings.demand_full_precision()
    try:
        yield
    finally:
        settings.restore()


@dataclass(frozen=True)
class _Float32Settings:
    """The user's settings of torch's switches for float32.

    torch has two sets of switches. Reading an old switch raises where a user has set a new one. Such an old switch is
    left as it is, since the new ones decide (torch 2.9 to 2.13).

    Args:
        matmul: of the old switch for matrix products; None where it can't be read.
        convolution: of the old switch for convolutions; None where it can't be read.
        by_backend: of the new switches, in the order of `_float32_switches`.
    """

    matmul: str | None
    convolution: bool | None
    by_backend: tuple[str, ...]

    @classmethod
    def read(cls) -> _Float32Settings:
        by_backend = tuple(switch.fp32_precision for switch in _float32_switches())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the old switches are old
            matmul = _read_or_none(torch.get_float32_matmul_precision)
            convolution = _read_or_none(lambda: torch.backends.cudnn.allow_tf32)
        return cls(matmul, convolution, by_backend)

    def demand_full_precision(self) -> None:
        self._set_old_switches("highest", False)
        for switch in _float32_switches():
            switch.fp32_precision = "ieee"

    def restore(self) -> None:
        self._set_old_switches(self.matmul, self.convolution)
        for switch, precision in zip(_float32_switches(), self.by_backend, strict=True):
            switch.fp32_precision = "none"  # follow the backend's setting, unless that is another
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision

    def _set_old_switches(self, matmul: str | None, convolution: bool | None) -> None:
        """Set those that could be read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.matmul is not None and matmul is not None:
                torch.set_float32_matmul_precision(matmul)
            if self.convolution is not None and convolution is not None:
                torch.backends.cudnn.allow_tf32 = convolution


def _float32_switches() -> list[Any]:
    """torch's new switches, one for each kind of operation of each backend."""
    return [attrgetter(path)(torch.backends) for path in _FLOAT32_SWITCHES]


def _read_or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None


@cache
def _choose_mkl_kernels() -> None:
    """Have oneMKL choose its kernels while a single thread calls it.

    It chooses a function's kernel at the first call (2024.2, in PyTorch 2.13). If threads of one operation make that
    call together, some get a kernel of low accuracy: cosines are off by 1e-4 (pytorch/pytorch#188792).
    """
    for dtype in (torch.float32, torch.float64):
        one_element = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in _MKL_FUNCTIONS:
            getattr(torch, name)(one_element)
