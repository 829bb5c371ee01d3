"""`EngineArtifact` → `TRTModule`: an engine called like the PyTorch module, on PyTorch's memory and streams.

Enters: CUDA tensors on the caller's current stream. Leaves: fresh CUDA tensors, ready on that stream. A room of its own
because lifetimes and stream order between PyTorch and TensorRT are kept right here and nowhere else.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from torch2engine import trt
from torch2engine.artifact import EngineArtifact, OnnxArtifact, load_artifact
from torch2engine.deployed import Deployed, torch_dtype
from torch2engine.errors import BuildError, DeviceError, InputError, InstallationError
from torch2engine.report import DeployReport
from torch2engine.runtime.engine import Context, Engine

__all__ = ["TRTModule", "load", "require_cuda"]

_ALIGNMENT_BYTES = 256


def require_cuda() -> None:
    """Make sure that PyTorch can use a GPU.

    Raises:
        InstallationError: a CPU build of PyTorch, or no GPU.
    """
    if not torch.cuda.is_available():
        raise InstallationError(
            "PyTorch",
            got=f"torch {torch.__version__} sees no CUDA device",
            allowed="TRTModule works on CUDA tensors",
            fix="install a CUDA build of torch on a machine with a GPU, or deploy with runtime='onnxruntime'",
        )


class TRTModule(Deployed[EngineArtifact]):
    """A TensorRT engine in the model's place.

    Threads may share it. It binds to a device on its first call, or by `.to(device)`; it can be pickled, deep-copied
    and sent to spawned processes, where it binds anew. While a CUDA graph is being captured it refuses to be called.

    Args:
        artifact: the engine.
        report: what deploy() found, or None.
        device: where to run; None binds to the first input's device.
    """

    _device: torch.device | None
    _live: _Live | None
    _binding: threading.Lock

    def __init__(
        self, artifact: EngineArtifact, report: DeployReport | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__(artifact, report)
        wanted = None if device is None else _cuda_device(device)
        # "cuda" without a number is any of them, like None
        self._device = None if wanted is None or cast("int | None", wanted.index) is None else wanted
        self._reset()

    def _reset(self) -> None:
        self.__dict__["_live"] = None
        self.__dict__["_binding"] = threading.Lock()

    @property
    def device(self) -> torch.device | None:
        return self._device

    @property
    def runtime(self) -> str:
        hardware = self._artifact.hardware
        return f"{trt.PRODUCTS[hardware.flavour]} {hardware.flavour_version}"

    def bind(self, device: torch.device | str | None = None) -> TRTModule:
        """Deserialise the engine now rather than on the first call.

        Args:
            device: a CUDA device; None for the one that the module has, else PyTorch's current device.

        Raises:
            DeviceError: no CUDA device.
            InstallationError: no GPU, no TensorRT of this flavour, or a PyTorch without CUDA.
            ArtifactError: the engine was made for other hardware, another version or another TF32 setting.
        """
        wanted = self._device if device is None else _cuda_device(device)
        require_cuda()
        if wanted is None or cast("int | None", wanted.index) is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
        with self._binding:
            if self._live is None or self._live.device != wanted:
                self._live = _Live(self._artifact, wanted)
                self._device = wanted
        return self

    def _bound(self, device: torch.device) -> _Live:
        """The live engine, made on this device if there is none yet."""
        live = self._live
        if live is None:
            require_cuda()
            with self._binding:
                live = self._live
                if live is None:
                    live = self._live = _Live(self._artifact, device)
                    self._device = device
        if live.device != device:
            raise DeviceError(
                "TRTModule",
                got=f"inputs on {device}",
                allowed=f"another thread has just bound the module to {live.device}",
                fix="use a copy.deepcopy of the module for each device",
            )
        return live

    def _can_run_on(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def _move(self, device: torch.device) -> None:
        self.bind(device)

    @property
    def memory_bytes(self) -> int:
        """Device memory, in bytes, that the engine's contexts work in (weights not counted); 0 until bound."""
        return self._live.engine.memory_bytes if self._live is not None else 0

    def _check_ready(self) -> None:
        if self._live is not None:
            self._live.engine.check_process()
        if torch.cuda.is_current_stream_capturing():
            raise InputError(
                "TRTModule",
                got="a call while a CUDA graph is being captured",
                allowed="calls outside of capture",
                fix="leave this call out of torch.cuda.graph",
            )

    def _infer(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        return self._bound(inputs[0].device).run(profile, inputs)

    def _travels(self, name: str) -> bool:
        return not name.startswith("model.onnx")

    def __getstate__(self) -> dict[str, Any]:
        # A device index means nothing in another process, and live engines can't travel.
        return {**super().__getstate__(), "_device": None, "_live": None, "_binding": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()


class _Live:
    """An engine on a device with the streams and events that keep it in order."""

    def __init__(self, artifact: EngineArtifact, device: torch.device) -> None:
        self.device = device
        self._process = os.getpid()
        self._done: dict[int, torch.cuda.Event] = {}
        with torch.cuda.device(device):
            torch.cuda.init()
            # Not a method: the engine would hold this object, and a dropped module would wait for the cyclic GC.
            self.engine = Engine(artifact, device.index, functools.partial(_allocate, device))
            self._side = torch.cuda.Stream(device)
            # An empty tensor has no address, and TensorRT takes no null.
            self._nothing = torch.empty(_ALIGNMENT_BYTES, dtype=torch.uint8, device=device)

    def run(self, profile: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue one inference behind the caller's work and hand the results to the caller's stream."""
        with torch.cuda.device(self.device):
            caller = torch.cuda.current_stream()
            inputs = [tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone() for tensor in tensors]
            shapes = {
                spec.name: tuple(tensor.shape)
                for spec, tensor in zip(self.engine.signature.inputs, inputs, strict=True)
            }
            with self.engine.lock:
                # On the legacy default stream TensorRT would synchronise the device: fork to a side stream and join.
                # The join also makes it right to free inputs and temporaries on the caller's stream afterwards.
                fork = caller.cuda_stream == 0
                stream = self._side if fork else caller
                context = self.engine.context(profile, stream.cuda_stream)
                outputs = self._outputs(context, shapes)
                if fork:
                    stream.wait_stream(caller)
                try:
                    self._enqueue(profile, context, stream, [*inputs, *outputs])
                finally:
                    if fork:
                        caller.wait_stream(stream)
        return outputs

    def _outputs(self, context: Context, shapes: Mapping[str, Sequence[int]]) -> list[torch.Tensor]:
        specs = self.engine.outputs
        return [
            torch.empty(shape, dtype=torch_dtype(spec.dtype), device=self.device)
            for spec, shape in zip(specs, context.set_shapes(shapes), strict=True)
        ]

    def _enqueue(
        self, profile: int, context: Context, stream: torch.cuda.Stream, tensors: Sequence[torch.Tensor]
    ) -> None:
        specs = [*self.engine.signature.inputs, *self.engine.outputs]
        addresses = {
            spec.name: (tensor if tensor.numel() else self._nothing).data_ptr()
            for spec, tensor in zip(specs, tensors, strict=True)
        }
        done = self._done.get(profile)
        if done is None:
            done = self._done[profile] = torch.cuda.Event()
        else:
            # The context's memory is in use until its last call, maybe on another stream, is through.
            stream.wait_event(done)
        try:
            context.enqueue(addresses, stream.cuda_stream)
        except BuildError:
            # Out of memory, say. The context would fail at every later shape too (RTX 1.6.1): start afresh.
            stream.synchronize()
            self.engine.drop_context(profile)
            raise
        finally:
            done.record(stream)

    def __del__(self) -> None:
        if os.getpid() != self._process or sys.is_finalizing() or not hasattr(self, "engine"):
            return
        with torch.cuda.device(self.device):
            # The contexts' memory goes back to PyTorch's allocator, which knows nothing of the streams it was used on.
            for done in self._done.values():
                done.synchronize()
            del self.engine  # here, because TensorRT leaves its own device current when it goes


def _allocate(device: torch.device, size_bytes: int) -> tuple[int, torch.Tensor]:
    """Device memory from PyTorch's allocator: (address, the tensor that owns it)."""
    try:
        memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise BuildError(
            "execution context",
            got=f"its working memory of {size_bytes / 2**20:.0f} MiB does not fit on {device}",
            fix="free GPU memory, or build with a smaller max in the profiles",
            out_of_memory=True,
        ) from error
    return memory.data_ptr(), memory


def _cuda_device(device: torch.device | str) -> torch.device:
    wanted = torch.device(device)
    if wanted.type != "cuda":
        raise DeviceError(
            "TRTModule",
            got=f"device {wanted}",
            allowed="a CUDA device",
            fix="deploy with runtime='onnxruntime' for the CPU",
        )
    return wanted


def load(path: str | Path, device: torch.device | str | None = None) -> Deployed[Any]:
    """Load a saved artifact: an engine as `TRTModule`, an exported model as `ORTModule`.

    Args:
        path: the folder that `save` wrote.
        device: for an engine a CUDA device, by default PyTorch's current one; an exported model runs on the CPU.

    Raises:
        ArtifactError: corrupt, foreign, or made for other hardware or another version.
        InstallationError: no GPU, or no TensorRT of its flavour.
        DeviceError: an exported model was to go to a GPU, or an engine to the CPU.
    """
    artifact = load_artifact(path)
    wanted = None if device is None else torch.device(device)
    if isinstance(artifact, OnnxArtifact):
        from torch2engine.ort_module import ORTModule

        module = ORTModule(artifact)
        return module if wanted is None else module.to(wanted)
    if wanted is not None and wanted.type != "cuda":
        raise DeviceError(
            f"engine '{path}'",
            got=f"device is {wanted}",
            allowed="an engine runs on CUDA devices",
            fix="leave out device, or load what deploy(runtime='onnxruntime') saved",
        )
    return TRTModule(artifact).bind(wanted)
