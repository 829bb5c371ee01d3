"""Running a module without leaving a trace.

Enters: a live module, in training or not. Leaves: the same module, bit for bit, after whatever ran in between in
inference mode. A room of its own because deploy is called from training code and may not disturb it.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch2engine.core.errors import ExportError

__all__ = ["exact_arithmetic", "process_state_lock", "undisturbed"]

# The switches below are the process's, so a second thread would save the first one's settings as the user's. And
# torch's exporters, which run inside, patch global state as well (torch.onnx: CURRENT_PATCHER).
_ONE_AT_A_TIME = threading.RLock()
_BY_MKL = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p"),
    *("log2", "sin", "sinh", "cosh", "sqrt", "tan", "tanh"),
)


class _Snapshot:
    """Everything of a module that a forward pass or an export may move."""

    def __init__(self, model: nn.Module) -> None:
        self.containers = list(_containers([module.__dict__ for module in model.modules()], set()))
        tensors = [*model.buffers(), *model.parameters()]
        self.buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in model.buffers()]
        self.parameters = [(name, parameter, _version(parameter)) for name, parameter in model.named_parameters()]
        self.grads = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]

    def restore(self) -> None:
        for container, before in self.containers:
            _refill(container, before)
        for buffer, version, values in self.buffers:
            if _version(buffer) != version or _differ(buffer, values):
                buffer.detach().copy_(values)
                if version is not None:  # the old one, since a pending backward pass may hold the buffer
                    cast("Any", torch)._C._autograd._unsafe_set_version_counter((buffer,), (version,))
        for tensor, grad in self.grads:
            if tensor.grad is not grad:
                tensor.grad = grad

    def check_parameters(self, error: Exception | None = None) -> None:
        """Report what can't be undone.

        Raises:
            ExportError: parameters were written to; names them.
        """
        changed = [name for name, parameter, version in self.parameters if _version(parameter) != version]
        if changed:
            raise ExportError(
                "model",
                got=f"its forward writes into its own parameters: {', '.join(changed)}; they keep the new values",
                allowed="a forward that only reads them",
                fix="move such updates out of forward",
            ) from error


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _differ(buffer: torch.Tensor, values: torch.Tensor) -> bool:
    """Tell whether values changed behind the version counter's back, as writes through `.data` do."""
    return not buffer.is_meta and buffer.layout is torch.strided and not torch.equal(buffer, values)


def _containers(values: Iterable[Any], seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Every dict, list, set and deque among and below `values`, with a copy: models register, append and cache."""
    for value in values:
        if isinstance(value, (dict, list, set, deque)) and id(cast("object", value)) not in seen:
            seen.add(id(cast("object", value)))
            mapping = isinstance(value, dict)
            before: Any = dict(cast("Any", value)) if mapping else list(cast("Any", value))
            yield value, before
            yield from _containers(before.values() if mapping else before, seen)


def _refill(container: Any, before: Any) -> None:
    if isinstance(container, dict):
        # Key by key, never emptied in between: other threads may be calling the model.
        for name in [name for name in cast("dict[Any, Any]", container) if name not in before]:
            del container[name]
        for name, value in before.items():
            if name not in container or container[name] is not value:
                container[name] = value
    elif len(container) != len(before) or any(now is not value for now, value in zip(container, before, strict=True)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(before)


@contextmanager
def _rng_kept() -> Generator[None]:
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _plain_arithmetic() -> Generator[None]:
    """Grad, inference mode and autocast off, and attention spelt out.

    The encoder's fast path zeroes padded rows, and the fused attention kernels for CUDA pad sequences to multiples of
    8, which torch.export turns into conditions on a dynamic sequence length (torch 2.11).
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # its tensors have no versions, and can't be exported
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(cast("AbstractContextManager[Any]", sdpa_kernel(SDPBackend.MATH)))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _full_float32() -> Generator[None]:
    """Float32 computed in float32, not in TF32 or bfloat16 or by a sloppy kernel, on CPU and GPU.

    torch has two sets of switches, and reading an old one raises where a user has turned a new one: such are left as
    they are, since the new ones decide (torch 2.9 to 2.13).
    """
    _settle_mkl()
    backends = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    switches: list[Any] = [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    before = [switch.fp32_precision for switch in switches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their age
        matmul, convolution = _or_none(torch.get_float32_matmul_precision), _or_none(lambda: cudnn.allow_tf32)
        _set_old(None if matmul is None else "highest", None if convolution is None else False)
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _set_old(matmul, convolution)
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = "none"  # follow the backend's setting, unless that is another
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


@cache
def _settle_mkl() -> None:
    """Have oneMKL choose its kernels while one thread asks.

    It chooses a function's at the first call (2024.2, in PyTorch 2.13), and where threads of one operation make
    that call together, some compute with a kernel for low accuracy: cosines off by 1e-4 (pytorch/pytorch#188792).
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in _BY_MKL:
            getattr(torch, name)(one)


def _set_old(matmul: str | None, convolution: bool | None) -> None:
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if convolution is not None:
        torch.backends.cudnn.allow_tf32 = convolution


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None


@contextmanager
def process_state_lock() -> Generator[None]:
    """Keep other threads out of what this module's other functions do; for who takes further locks inside."""
    with _ONE_AT_A_TIME:
        yield


@contextmanager
def exact_arithmetic() -> Generator[None]:
    """Compute the body in the dtypes that it names, without grad: no autocast, no TF32."""
    with _ONE_AT_A_TIME, _plain_arithmetic(), _full_float32():
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Run the body with `model` in inference mode and put everything back afterwards, also after an error.

    Kept: the training flag of every submodule, parameters, buffers and gradients (values and identity), Python
    attributes of every submodule and the containers in them, hooks, RNG state of Python, NumPy, CPU and GPUs,
    autocast, grad mode, the current device, the float32 switches and the attention backends.

    Raises:
        ExportError: the model's forward writes into its own parameters, which can't be undone.
    """
    with _ONE_AT_A_TIME:
        snapshot = _Snapshot(model)
        with _rng_kept(), _plain_arithmetic(), _full_float32():
            try:
                for module in model.modules():
                    # Not .eval(): models override it, to merge adapters for instance, and that is no undoing.
                    module.__dict__["training"] = False
                yield
            except Exception as error:
                snapshot.check_parameters(error)  # says more than an error that may follow from it
                raise
            finally:
                snapshot.restore()
    snapshot.check_parameters()
