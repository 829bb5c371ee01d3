"""`EngineArtifact` → `TRTModule`: an engine called like the PyTorch module.

Enters: CUDA tensors on the caller's current stream. Leaves: fresh CUDA tensors, ready on that stream. Separate because
only a TensorRT engine offers these: a fast path for calls, devices, kernels and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from torch2engine.artifact.artifact import require_artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError
from torch2engine.core.package import public
from torch2engine.core.pytree import unflatten
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.deployed_module import DeployedModule, Model_co
from torch2engine.deployed.made_inputs import zeros
from torch2engine.deployed.torch_state import tracing_state
from torch2engine.deployed.trt.trt_backend import TensorRTBackend

if TYPE_CHECKING:
    from torch2engine.deployed.deploy_report import DeployReport

__all__ = ["TRTModule"]

T = TypeVar("T", bound="TRTModule[Any]")

_WARM_CALLS = 5  # enough for a CUDA graph at addresses that recur


@public
class TRTModule(DeployedModule[TensorRTBackend, Model_co]):
    """A TensorRT engine in the model's place.

    Threads may share it. It binds to a device on its first call, or by `.to(device)`. It can be pickled, deep-copied
    and sent to spawned processes, where it binds anew.

    A call works on the caller's current stream. If that is the legacy default stream, it works on a side stream, and
    each of the two waits for the other. A call does not wait for the GPU, with two exceptions: to take memory for
    larger shapes, and to replace contexts and CUDA graphs. torch.cuda.graph may capture a call after an ordinary call
    at the same shapes. The graph then keeps the context of that call until `trim`. Keep the module as long as the
    graph.

    Args:
        artifact: the engine.
        report: what deploy() found, or None.
        device: where to run; None binds to the first input's device.
        runtime_config: how it answers.
        reference: the PyTorch module that answers under out_of_range="eager".

    >>> t2e.TRTModule(engine)  # its first call binds it to a GPU
    TRTModule(x: float32[batch, 3, 64, 64] -> output: float32[batch, 10]; batch 1..32 (opt 8); fp32, device=None)
    """

    def __init__(
        self,
        artifact: EngineArtifact,
        report: DeployReport | None = None,
        device: torch.device | str | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        require_artifact("TRTModule", artifact, EngineArtifact)
        super().__init__(artifact, report, runtime_config, reference, device)

    def _make_backend(
        self, artifact: EngineArtifact, guard: WeightsGuard, device: torch.device | str | None
    ) -> TensorRTBackend:
        return TensorRTBackend(artifact, self._runtime_config, guard, device)

    @classmethod
    def from_saved(
        cls: type[T],
        artifact: Any,
        path: str | Path,
        device: torch.device | None,
        runtime_config: RuntimeConfig,
        reference: nn.Module | None,
    ) -> T:
        if device is not None and device.type != "cuda":
            raise DeviceError(
                f"engine '{path}'",
                got=f"device {device}",
                allowed="a CUDA device",
                fix="leave out device, or load what deploy(runtime='onnxruntime') saved",
            )
        module = cls(artifact, runtime_config=runtime_config, reference=reference)
        module.bind(device)
        return module

    @property
    def _artifact(self) -> EngineArtifact:
        return self._backend.artifact

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The fast path: a call of a few microseconds. Each check here is an attribute or one C function.
        if torch.compiler.is_dynamo_compiling():
            return super().forward(*args, **kwargs)
        backend = self._backend
        session = backend.session
        if session is None or self._weight_sync.tracked is not None or tracing_state() is not None:
            return super().forward(*args, **kwargs)
        direct_call = backend.direct_call
        leaves = direct_call.leaves(args, kwargs)
        live = self._live
        if live is not None:
            leaves = [*leaves, *live.tensors()]
        write_back = self._write_back
        if write_back is not None and not write_back.suits_fast_path(leaves):
            return super().forward(*args, **kwargs)
        outputs = session.try_fast_path(leaves)
        if outputs is None:
            return super().forward(*args, **kwargs)
        if write_back is not None:
            return write_back.apply(leaves, outputs, args, kwargs)
        return outputs[0] if direct_call.returns_tensor else unflatten(backend.artifact.signature.output, outputs)

    forward.__doc__ = DeployedModule.forward.__doc__

    def infer(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self._infer_fast(leaves)
        if outputs is None:
            return super().infer(leaves)
        return {spec.name: output for spec, output in zip(self._artifact.signature.outputs, outputs, strict=True)}

    infer.__doc__ = DeployedModule.infer.__doc__

    def infer_flat(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs = self._infer_fast(leaves)
        return list(super().infer(leaves).values()) if outputs is None else outputs

    infer_flat.__doc__ = DeployedModule.infer_flat.__doc__

    def _infer_fast(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Answer flat inputs that need no cast, copy or refusal, at shapes that were answered before; else None."""
        session = self._backend.session
        if session is None or torch.compiler.is_dynamo_compiling() or tracing_state() is not None:
            return None
        return session.try_fast_path(leaves)

    def bind(self: T, device: torch.device | str | None = None) -> T:
        """Deserialise the engine now rather than on the first call.

        Args:
            device: a CUDA device; None for the one that the module has, else PyTorch's current device.

        Raises:
            DeviceError: no CUDA device.
            InstallationError: no GPU, no TensorRT of this flavour, or a PyTorch without CUDA.
            ArtifactError: the engine was made for other hardware, or another version.
        """
        session = self._backend.bind(device)
        if self._live is not None:
            self._live.bind(session.device)
        return self

    @property
    def memory_bytes(self) -> int:
        """Device memory, in bytes, that the engine's contexts work in (weights not counted); 0 until called.

        It grows with the shapes that were called so far, for each stream. A `SharedMemory` counts as a whole.
        """
        return self._backend.memory_bytes

    def layers(self) -> str:
        """The engine's layers, as TensorRT's inspector lists them: JSON in TensorRT's words, which change by version.

        `torch2engine.precision_report` reads it.

        Raises:
            DeviceError, InstallationError, ArtifactError: as `bind`.
        """
        return self._backend.bind().engine.layers()

    def warmup(self, shapes: Iterable[Mapping[str, int]] | None = None) -> None:
        """Run on zeros at some shapes, so that later calls find kernels, contexts and CUDA graphs ready.

        A `save` afterwards keeps what TensorRT-RTX compiles. Call it under the stream that will be used.

        Args:
            shapes: axis name -> size, e.g. ``[{"batch": 1}, {"batch": 8}]``; axes left out take the first profile's
                opt. None: min, opt and max of every profile. If other profiles answer these, a size that only this one
                answers is added.

        Raises:
            InputError: no such axis.
            ShapeError: outside every profile, where `out_of_range` does not help.
            DeviceError, InstallationError, ArtifactError: as `bind`.
        """
        self.bind()
        for inputs in zeros(self.signature, self._artifact.profiles, shapes, self.device):
            for _ in range(_WARM_CALLS):
                self.infer(inputs)
        torch.cuda.synchronize(self.device)

    def trim(self) -> None:
        """Wait for calls in flight and give back working memory, contexts and CUDA graphs.

        The engine and its compiled kernels stay; the next call of each shape is slower. CUDA graphs of your own that
        hold calls of this module must not be launched any more. A `SharedMemory` stays as long as others use it.
        """
        self._backend.trim()

    def compiled(self) -> EngineArtifact:
        """The engine as `save` would write it: with the kernels that TensorRT-RTX compiled so far."""
        with self._weight_sync.weights_locked():
            return self._current_artifact()
