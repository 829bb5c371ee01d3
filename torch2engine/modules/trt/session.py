"""An engine on one device, shared by all threads and streams: who may use which lane.

Enters: tensors on the caller's current stream. Leaves: results on that stream. Apart from `module` because it ends and
begins anew with every device and artifact, while the module stays.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import InputError, RefitError
from torch2engine.modules.torch_state import current_device, dual_level, is_capturing, modes, stream_handle
from torch2engine.modules.trt.prepared_shape import Plan, allocate
from torch2engine.modules.trt.stream_executor import PER_THREAD, Lane
from torch2engine.trt.engine import Engine
from torch2engine.trt.gpu import find_capture_id, relaxed_capture_mode

__all__ = ["Live", "not_prepared"]

_ALIGNMENT_BYTES = 256
_STREAMS_REMEMBERED = 1024

_Shapes = tuple[torch.Size, ...]


# What live engines consist of, by id. If the garbage collector finds a module in a reference cycle, it then finds
# no more than the `Live`, whose destructor ends everything in order; else it would end each part for itself, contexts
# amid their work and engines before their contexts.
_parts: dict[int, dict[str, Any]] = {}


def not_prepared(what: str, fix: str = "call the module once with these shapes right before the capture") -> InputError:
    """The error of a call inside the user's capture of a CUDA graph that would need more than an enqueue."""
    return InputError(
        "TRTModule",
        got=f"a call during the capture of a CUDA graph, {what}",
        allowed="one capture for each ordinary call before it, which compiles kernels and makes a context "
        "(RuntimeConfig.contexts must have room for every shape in it)",
        fix=fix,
    )


class _Streams:
    """torch.cuda.Stream by handle, kept because PyTorch takes 7 µs to make one.

    Not a method of `Live`: lanes hold it, and a dropped module would have to wait for the cyclic garbage collector.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[int, torch.cuda.Stream] = {}

    def __call__(self, handle: int) -> torch.cuda.Stream:
        """The current stream, whose handle this is."""
        stream = self._streams.get(handle)
        if stream is None or handle == PER_THREAD:
            if len(self._streams) >= _STREAMS_REMEMBERED:
                self._streams.clear()
            stream = self._streams[handle] = torch.cuda.current_stream(self._device)
        return stream


class Live:
    """An engine on a device with its lanes.

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
        self._lanes: dict[int, Lane] = {}
        self._streams = _Streams(device)
        # What the user's CUDA graphs run in: nothing else touches these as long as the engine lives.
        self._captured: dict[tuple[int, int, _Shapes], Plan] = {}
        self.is_spoilt = False  # by a refit that failed half-way
        self._dtypes = [torch_dtype(spec.dtype) for spec in artifact.signature.inputs]
        with torch.cuda.device(device):
            torch.cuda.init()
            self.engine = Engine(artifact, device.index, config.kernel_specialization)
        _parts[id(self)] = self.__dict__

    def quick(self, leaves: Sequence[Any]) -> list[torch.Tensor] | None:
        """Answer inputs that need no cast, copy or refusal, at shapes that were answered before; else None.

        Every check of the call contract is in here, in its cheapest form; what fails one is looked at in `infer`.
        """
        if os.getpid() != self._process:
            return None
        grad = torch.is_grad_enabled()
        index = self._index
        shapes: list[torch.Size] = []
        addresses: list[int] = []
        try:
            for leaf, dtype in zip(leaves, self._dtypes, strict=True):
                # Other classes are subclasses with a meaning of their own, or no tensors.
                if type(leaf) is not torch.Tensor or leaf.dtype is not dtype or leaf.get_device() != index:
                    return None
                if (grad and leaf.requires_grad) or leaf.is_neg() or not leaf.is_contiguous():
                    return None
                address = leaf.data_ptr()
                if not address or address % _ALIGNMENT_BYTES:
                    return None
                shapes.append(leaf.shape)
                addresses.append(address)
        except (RuntimeError, ValueError):  # a stand-in without memory, another layout, another number of inputs
            return None
        handle = stream_handle(index)
        lane = self._lanes.get(handle)
        if lane is None or current_device() != index:
            return None
        # The legacy default stream can't be captured.
        if (handle and is_capturing()) or dual_level() >= 0 or modes():
            return None
        return lane.answer(tuple(shapes), None, leaves, addresses, handle)

    def run(self, profile: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer checked, contiguous inputs that lie in this profile, on the caller's current stream.

        Raises:
            BuildError: TensorRT refuses, mostly for want of memory.
            InputError: a CUDA graph is being captured and nothing was prepared for these shapes.
        """
        with torch.cuda.device(self.device):
            inputs = [tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone() for tensor in tensors]
            shapes = tuple(tensor.shape for tensor in inputs)
            addresses = [tensor.data_ptr() for tensor in inputs]
            handle = stream_handle(self._index)
            if is_capturing():
                with self._lock:
                    return self._capture(shapes, addresses, handle)
            outputs = None
            while outputs is None:  # a lane may be closed by trim() just now
                outputs = self._lane(handle).answer(shapes, profile, inputs, addresses, handle)
            return outputs

    def _lane(self, handle: int) -> Lane:
        """The stream's lane; a new one, or if there are enough the one that was idle for the longest time."""
        with self._lock:
            if self.is_spoilt:
                raise RefitError(
                    "engine",
                    got="a refit failed half-way",
                    allowed="one whose weights are whole",
                    fix="refit it again, or deploy the model again",
                )
            lane = self._lanes.get(handle)
            if lane is not None and lane.is_closed:  # by a trim() that was interrupted
                lane.close()
                del self._lanes[handle]
                lane = None
            if lane is None:
                if len(self._lanes) < self._config.streams:
                    lane = Lane(self.engine, self.device, self._config, self._streams)
                else:
                    idle = min(self._lanes, key=lambda key: self._lanes[key].used)
                    lane = self._lanes.pop(idle)  # a call that still holds it waits its turn and takes over again
                    if self._config.output == "static":  # which the idle stream may still read
                        lane.close()
                        lane = Lane(self.engine, self.device, self._config, self._streams)
                self._lanes[handle] = lane
            return lane

    def _capture(self, shapes: _Shapes, addresses: Sequence[int], handle: int) -> list[torch.Tensor]:
        """Enqueue into the user's CUDA graph, which may be launched at any time, beside other calls.

        So it gets a context for itself alone, and working memory from the graph's own pool, which PyTorch's allocator
        gives while it captures.
        """
        identity = find_capture_id(handle)
        assert identity is not None, "the caller has seen the capture"
        key = (identity, handle, shapes)
        plan = self._captured.get(key)
        if plan is None:
            lanes = list(self._lanes.values())
            if any(plan.unknown for lane in lanes if (plan := lane.plans.get(shapes)) is not None):
                raise not_prepared("and the shapes of its outputs depend on values, which a graph can't ask for")
            plan = next((taken for lane in lanes if (taken := lane.take_warm(shapes)) is not None), None)
            if plan is None:
                sizes = ", ".join(str(list(shape)) for shape in shapes)
                raise not_prepared(f"at shapes {sizes} that no ordinary call since the last capture prepared")
            self._captured[key] = plan
        context = plan.context
        assert context is not None, "take_warm gives plans with one"
        if reason := context.why_not_capturable(handle):
            raise not_prepared(f"but {reason}")
        memory = allocate(max(plan.memory_bytes, _ALIGNMENT_BYTES), self.device)[1]
        outputs = plan.fresh()
        context.set_memory(memory.data_ptr(), memory.numel())
        addresses = (*addresses, *[output.data_ptr() for output in outputs])
        context.bind(addresses if all(addresses) else plan.nonzero(addresses))
        context.enqueue(handle)
        return outputs

    def check_refittable(self) -> None:
        """Refuse a refit that would crash the process later on.

        Raises:
            RefitError: a CUDA graph of the user's holds a call.
        """
        if self._captured:
            raise RefitError(
                "refit",
                got="CUDA graphs of yours hold calls of this module, and launching them afterwards would crash",
                allowed="a module that is in no such graph",
                fix="drop these graphs and call the module's trim(); capture them again after the refit",
            )

    @property
    def is_captured(self) -> bool:
        """Whether CUDA graphs of the user's hold calls."""
        return bool(self._captured)

    def spoil(self) -> None:
        """Answer no more calls until a refit; what the user has captured goes on."""
        with self._lock:
            self.is_spoilt = True
            for lane in self._lanes.values():
                with lane.lock:
                    lane.is_closed = True

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put other weights into the engine, while nothing of it runs.

        Contexts go, since TensorRT-RTX prepares each of them anew in a refit (1.6.1 on an H200: 26 ms a context for
        ResNet-50, and 2 ms without any), and so do CUDA graphs, whose launch would crash the process.

        Args:
            weights: by name, all that can be replaced; contiguous, on the engine's device, ready on the current stream.

        Raises:
            RefitError: a CUDA graph of the user's holds a call; or TensorRT refuses the weights: `is_spoilt` then.
        """
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode(), ExitStack() as held:
            for lane in self._lanes.values():
                held.enter_context(lane.lock)  # whoever is in a call ends it, whoever comes waits
            self.check_refittable()
            for lane in self._lanes.values():
                lane.rest()
            stream = torch.cuda.current_stream()
            stream.synchronize()
            places = {name: (dtype_name(one.dtype), one.data_ptr(), one.numel()) for name, one in weights.items()}
            self.is_spoilt = True
            for lane in self._lanes.values():
                lane.is_closed = True  # if this fails nobody gets an answer from what is left
            self.engine.refit(places, stream.cuda_stream, stream.synchronize)
            for lane in self._lanes.values():
                lane.is_closed = False
            self.is_spoilt = False

    @property
    def is_usable(self) -> bool:
        """False in a fork of the process that made it."""
        return os.getpid() == self._process

    @property
    def memory_bytes(self) -> int:
        """Device memory that the lanes work in."""
        return sum(lane.memory_bytes for lane in list(self._lanes.values()))

    def trim(self) -> None:
        """Wait for what is running and give back working memory, contexts and graphs."""
        if self._captured:  # the user's graphs have no event that could be waited for
            torch.cuda.synchronize(self.device)
        self._close()

    def _close(self) -> None:
        with self._lock, torch.cuda.device(self.device), relaxed_capture_mode():
            for handle in list(self._lanes):
                self._lanes[handle].close()
                del self._lanes[handle]  # one by one: if a wait is interrupted, the others are still known
            for plan in self._captured.values():
                plan.clear()
            self._captured.clear()

    def __del__(self) -> None:
        if _parts.pop(id(self), None) is None or not self.is_usable or sys.is_finalizing():
            return
        with torch.cuda.device(self.device), relaxed_capture_mode():
            # The lanes' memory goes back to PyTorch's allocator, which knows nothing of the streams it was used on.
            self._close()
            del self.engine  # here, because TensorRT leaves its own device current when it goes
