"""An engine on one device, shared by all threads and streams: which stream uses which executor.

Enters: tensors on the caller's current stream. Leaves: results on that stream. Separate from the module because a
session ends with its device or artifact, while the module stays.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import InputError, RefitError
from torch2engine.deployed.torch_state import current_device, dual_level, is_capturing, modes, stream_handle
from torch2engine.deployed.trt.output_tensors import allocate_memory
from torch2engine.deployed.trt.stream_executor import PER_THREAD_STREAM, PreparedTensors, StreamExecutor
from torch2engine.trt.gpu import find_capture_id, relaxed_capture_mode
from torch2engine.trt.live_engines import live_engine
from torch2engine.trt.memory import ALIGNMENT_BYTES

__all__ = ["EngineSession", "not_prepared"]

_MAX_CACHED_STREAMS = 1024

_Shapes = tuple[torch.Size, ...]


# The attributes of all sessions, by id. The garbage collector may find a module in a reference cycle. It then finds
# no more than the session, whose destructor ends everything in order. Without this table it would end each part by
# itself: contexts while they work, and engines before their contexts.
_session_attributes: dict[int, dict[str, Any]] = {}


def not_prepared(what: str, fix: str = "call the module once with these shapes right before the capture") -> InputError:
    """The error of a call that would need more than an enqueue, inside a CUDA graph that the user captures."""
    return InputError(
        "TRTModule",
        got=f"a call during the capture of a CUDA graph, {what}",
        allowed="one capture for each ordinary call before it, which compiles kernels and makes a context "
        "(RuntimeConfig.contexts must have room for every shape in it)",
        fix=fix,
    )


@dataclass(frozen=True)
class _KeptCapture:
    """The contexts of one CUDA graph that this package has captured around calls.

    Args:
        prepared: the contexts.
        wait: waits for the graph's work.
    """

    prepared: list[PreparedTensors]
    wait: Callable[[], object]


class _StreamCache:
    """torch.cuda.Stream by handle, since PyTorch takes 7 µs to make one.

    Not a method of `EngineSession`: executors hold it, and a dropped module would wait for the cyclic garbage
    collector.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[int, torch.cuda.Stream] = {}

    def __call__(self, handle: int) -> torch.cuda.Stream:
        """The current stream, whose handle this is."""
        stream = self._streams.get(handle)
        if stream is None or handle == PER_THREAD_STREAM:
            if len(self._streams) >= _MAX_CACHED_STREAMS:
                self._streams.clear()
            stream = self._streams[handle] = torch.cuda.current_stream(self._device)
        return stream


class EngineSession:
    """An engine on a device with an executor for each stream.

    Args:
        artifact: the engine.
        device: a CUDA device with its index.
        config: how it answers.

    Raises:
        InstallationError, ArtifactError, InputError: as `Engine`.
    """

    def __init__(self, artifact: EngineArtifact, device: torch.device, config: RuntimeConfig) -> None:
        self.device = device
        self._config = config
        self._index = device.index
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._executors: dict[int, StreamExecutor] = {}
        self._streams = _StreamCache(device)
        # The contexts of the user's CUDA graphs. Nothing else uses them as long as the session lives.
        self._user_captures: dict[tuple[int, int, _Shapes], PreparedTensors] = {}
        self._kept_captures: dict[int, _KeptCapture] = {}
        self.weights_incomplete = False  # by a refit that failed half-way
        self._dtypes = [torch_dtype(spec.dtype) for spec in artifact.signature.inputs]
        with torch.cuda.device(device):
            torch.cuda.init()
            self.engine = live_engine(artifact, device.index, config.kernel_specialization)
        _session_attributes[id(self)] = self.__dict__

    def try_fast_path(self, leaves: Sequence[Any]) -> list[torch.Tensor] | None:
        """Answer inputs that need no cast, copy or refusal, at shapes that were answered before; else None.

        Every check of the call contract is in here, in its cheapest form. Inputs that fail a check go through `infer`.
        """
        if os.getpid() != self._process:
            return None
        grad = torch.is_grad_enabled()
        index = self._index
        shapes: list[torch.Size] = []
        addresses: list[int] = []
        try:
            for leaf, dtype in zip(leaves, self._dtypes, strict=True):
                # Other classes are no tensors, or subclasses with a meaning of their own.
                if type(leaf) is not torch.Tensor and type(leaf) is not Parameter:
                    return None
                if leaf.dtype is not dtype or leaf.get_device() != index:
                    return None
                if (grad and leaf.requires_grad) or leaf.is_neg() or not leaf.is_contiguous():
                    return None
                address = leaf.data_ptr()
                if not address or address % ALIGNMENT_BYTES:
                    return None
                shapes.append(leaf.shape)
                addresses.append(address)
        except (RuntimeError, ValueError):  # a stand-in without memory, another layout, another number of inputs
            return None
        handle = stream_handle(index)
        executor = self._executors.get(handle)
        if executor is None or current_device() != index:
            return None
        # The legacy default stream can't be captured.
        if (handle and is_capturing()) or dual_level() >= 0 or modes():
            return None
        return executor.execute(tuple(shapes), None, leaves, addresses, handle)

    def run(self, profile: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer checked, contiguous inputs that lie in this profile, on the caller's current stream.

        Raises:
            BuildError: TensorRT refuses, mostly for want of memory.
            InputError: a CUDA graph is being captured and nothing was prepared for these shapes.
        """
        with torch.cuda.device(self.device):
            inputs = [tensor if tensor.data_ptr() % ALIGNMENT_BYTES == 0 else tensor.clone() for tensor in tensors]
            shapes = tuple(tensor.shape for tensor in inputs)
            addresses = [tensor.data_ptr() for tensor in inputs]
            handle = stream_handle(self._index)
            if is_capturing():
                with self._lock:
                    return self._capture(shapes, addresses, handle)
            outputs = None
            while outputs is None:  # trim() may close an executor just now
                outputs = self._executor_of(handle).execute(shapes, profile, inputs, addresses, handle)
            return outputs

    def _executor_of(self, handle: int) -> StreamExecutor:
        """The stream's executor, which may be new; if there are enough, the one that was idle for the longest time."""
        with self._lock:
            if self.weights_incomplete:
                raise RefitError(
                    "engine",
                    got="a refit that failed half-way",
                    allowed="one whose weights are whole",
                    fix="refit it again, or deploy the model again",
                )
            executor = self._executors.get(handle)
            if executor is not None and executor.is_closed:  # by a trim() that was interrupted
                executor.close()
                del self._executors[handle]
                executor = None
            if executor is None:
                executor = self._executors[handle] = self._make_or_reassign_executor()
            return executor

    def _make_or_reassign_executor(self) -> StreamExecutor:
        if len(self._executors) < self._config.streams:
            return StreamExecutor(self.engine, self.device, self._config, self._streams)
        idle = min(self._executors, key=lambda handle: self._executors[handle].last_used)
        executor = self._executors.pop(idle)  # a call that holds it takes it over again later
        if self._config.output != "static":
            return executor
        executor.close()  # The idle stream may still read its static outputs, so they stay as they are.
        return StreamExecutor(self.engine, self.device, self._config, self._streams)

    def _capture(self, shapes: _Shapes, addresses: Sequence[int], handle: int) -> list[torch.Tensor]:
        """Enqueue into the user's CUDA graph, which may be launched at any time, beside other calls.

        So it gets a context for itself alone. Its working memory comes from the CUDA graph's own pool, which PyTorch's
        allocator uses during a capture.
        """
        capture_id = find_capture_id(handle)
        assert capture_id is not None, "the caller has seen the capture"
        key = (capture_id, handle, shapes)
        prepared = self._user_captures.get(key)
        if prepared is None:
            prepared = self._user_captures[key] = self._take_prepared(shapes, handle)
        context = prepared.context
        assert context is not None, "only shapes with a context are handed over"
        if reason := context.why_not_capturable(handle):
            raise not_prepared(f"but {reason}")
        memory = allocate_memory(self.device, max(prepared.memory_bytes, ALIGNMENT_BYTES))
        outputs = prepared.outputs.make_fresh()
        context.set_memory(memory.address, memory.size_bytes)
        addresses = (*addresses, *[output.data_ptr() for output in outputs])
        context.bind(addresses if all(addresses) else prepared.outputs.replace_null_addresses(addresses))
        context.enqueue(handle)
        return outputs

    def _take_prepared(self, shapes: _Shapes, handle: int) -> PreparedTensors:
        """Take a context at these shapes from an executor, that of the capturing stream if it has one.

        Raises:
            InputError: no ordinary call has left such a context, or it can't be captured.
        """
        own = [self._executors[handle]] if handle in self._executors else []
        executors = [*own, *(one for one in self._executors.values() if one not in own)]
        for executor in executors:
            prepared = executor.pool.prepared.get(shapes)
            if prepared is not None and prepared.outputs.data_dependent:
                raise not_prepared("and the shapes of its outputs depend on values, which a graph can't ask for")
        for executor in executors:
            prepared = executor.hand_over(shapes)
            if prepared is not None:
                return prepared
        sizes = ", ".join(str(list(shape)) for shape in shapes)
        raise not_prepared(f"at shapes {sizes} that no ordinary call since the last capture prepared")

    def keep_capture(self, capture_id: int, handle: int, wait: Callable[[], object]) -> None:
        """Count the calls in a capture as the package's own, not as the user's, until `release_capture`.

        The executor of the capturing stream is closed, since no further call comes on that stream.

        Args:
            capture_id: as `find_capture_id` gave it; the capture has ended.
            handle: of the capturing stream.
            wait: waits for the graph's work. It must not hold the graph.
        """
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode():
            keys = [key for key in self._user_captures if key[0] == capture_id]
            self._kept_captures[capture_id] = _KeptCapture([self._user_captures.pop(key) for key in keys], wait)
            executor = self._executors.pop(handle, None)
            if executor is not None:
                executor.close()

    def release_capture(self, capture_id: int) -> None:
        """Wait for a graph that `keep_capture` was told of, and let go of its contexts; it must not be launched."""
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode():
            kept = self._kept_captures.pop(capture_id, None)
            if kept is not None:
                _let_go(kept)

    def check_refittable(self) -> None:
        """Refuse a refit that would crash the process later on.

        Raises:
            RefitError: a CUDA graph of the user's holds a call.
        """
        if self._user_captures:
            raise RefitError(
                "refit",
                got="CUDA graphs of yours that hold calls of this module, and would crash when launched afterwards",
                allowed="a module that is in no such graph",
                fix="drop these graphs and call the module's trim(); capture them again after the refit",
            )

    @property
    def is_captured(self) -> bool:
        """Whether CUDA graphs of the user's hold calls."""
        return bool(self._user_captures)

    def invalidate(self) -> None:
        """Answer no more calls until a refit. CUDA graphs of the user still run."""
        with self._lock:
            self.weights_incomplete = True
            for executor in self._executors.values():
                with executor.lock:
                    executor.is_closed = True

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put other weights into the engine, while nothing of it runs.

        Contexts are dropped first, because TensorRT-RTX prepares each of them anew in a refit. For ResNet-50 that takes
        26 ms for each context, and a refit without contexts takes 2 ms (1.6.1, H200). CUDA graphs are dropped, since
        launching them would crash the process.

        Args:
            weights: by name, all that can be replaced; contiguous, on the engine's device, ready on the current stream.

        Raises:
            RefitError: a CUDA graph of the user's holds a call; or TensorRT refuses the weights, and then
                `weights_incomplete` is True.
        """
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode(), ExitStack() as locks:
            executors = list(self._executors.values())
            for lock in dict.fromkeys(executor.lock for executor in executors):  # one, if they share their memory
                locks.enter_context(lock)  # waits for the call in progress, and makes later calls wait
            self.check_refittable()
            for executor in executors:
                executor.drop_contexts()
            stream = torch.cuda.current_stream()
            stream.synchronize()
            places = {name: (dtype_name(one.dtype), one.data_ptr(), one.numel()) for name, one in weights.items()}
            self.weights_incomplete = True
            for executor in executors:
                executor.is_closed = True  # If this fails, no later call uses what is left.
            self.engine.refit(places, stream.cuda_stream, stream.synchronize)
            for executor in executors:
                executor.is_closed = False
            self.weights_incomplete = False

    @property
    def is_usable(self) -> bool:
        """False in a fork of the process that made it."""
        return os.getpid() == self._process

    @property
    def memory_bytes(self) -> int:
        """Device memory that the executors work in; what they share with others counts as a whole."""
        orders = dict.fromkeys(executor.order for executor in list(self._executors.values()))
        return sum(order.size_bytes for order in orders)

    def trim(self) -> None:
        """Wait for running work and give back working memory, contexts and CUDA graphs."""
        if self._user_captures:  # the user's CUDA graphs have no event that could be waited for
            torch.cuda.synchronize(self.device)
        self._close(StreamExecutor.close)

    def _close(self, close_executor: Callable[[StreamExecutor], None]) -> None:
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode():
            for handle in list(self._executors):
                close_executor(self._executors[handle])
                del self._executors[handle]  # one by one: if a wait is interrupted, the others are still known
            for kept in self._kept_captures.values():
                _let_go(kept)
            self._kept_captures.clear()
            for prepared in self._user_captures.values():
                prepared.forget_context()
            self._user_captures.clear()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        if is_finalizing() or _session_attributes.pop(id(self), None) is None or not self.is_usable:
            return
        with torch.cuda.device(self.device), relaxed_capture_mode():
            # The executors' memory goes back to PyTorch's allocator, which does not know the streams that used it.
            self._close(StreamExecutor.close_unreachable)
            # Here, because TensorRT makes its own device current when the last session lets the engine go.
            del self.engine


def _let_go(kept: _KeptCapture) -> None:
    """Wait for a graph's work, and forget the contexts that it works with."""
    kept.wait()
    for prepared in kept.prepared:
        prepared.forget_context()
