"""`PartsArtifact` → `PartsModule`: a deployed model of which some operators stay in PyTorch.

Enters: calls as the model takes them. Leaves: fresh results in the model's own types, or a typed error. Separate
because only such a module can say what runs where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import CUT
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError
from torch2engine.core.package import public
from torch2engine.core.pytree import unflatten
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import Explanation, GraphPartRecord, Obstacle
from torch2engine.deployed.torch_state import tracing_state
from torch2engine.fallback.parts_backend import PartsBackend
from torch2engine.fallback.run_record import time_calls
from torch2engine.fallback.saved_cut import SavedCut

if TYPE_CHECKING:
    from torch2engine.deployed.deploy_report import DeployReport

__all__ = ["PartsModule", "placement_of"]

P = TypeVar("P", bound="PartsModule")


@public
class PartsModule(DeployedModule[PartsBackend]):
    """A model in engines, and in PyTorch where no engine takes an operator; made by `deploy(..., fallback=True)`.

    It is called, saved, loaded, copied and refitted like every deployed module. Operators in PyTorch may wait for the
    GPU, as they do in the model.

    Args:
        artifact: the model in parts.
        report: what deploy() found, or None; its notes name every operator that stays in PyTorch.
        device: where to run; None for the CPU, or with TensorRT engines for the first input's GPU.
        runtime_config: how it answers.
        reference: the PyTorch module that answers under out_of_range="eager".

    >>> class Spectrum(torch.nn.Module):
    ...     def forward(self, x):
    ...         weights = (x.mT @ x).softmax(-1)
    ...         return torch.linalg.eigvalsh(weights + weights.mT)
    >>> module = t2e.deploy(Spectrum(), torch.rand(5, 3), runtime="onnxruntime", fallback=True)
    >>> print(module.report.notes[0])
    in PyTorch: aten.linalg_eigvalsh...: no ONNX function (... µs a call)
    """

    def __init__(
        self,
        artifact: PartsArtifact,
        report: DeployReport | None = None,
        device: torch.device | str | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__(artifact, report, runtime_config, reference, device)
        if self._backend.runtime_kind == "onnxruntime":
            runtime_config.check_cpu(type(self).__name__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The fast path: each check here is an attribute or one C function.
        if torch.compiler.is_dynamo_compiling() or tracing_state() is not None:
            return super().forward(*args, **kwargs)
        if self._weight_sync.tracked is not None or self._write_back is not None:
            return super().forward(*args, **kwargs)
        backend = self._backend
        outputs = backend.try_fast_path(backend.direct_call.leaves(args, kwargs))
        if outputs is None:
            return super().forward(*args, **kwargs)
        return outputs[0] if backend.direct_call.returns_tensor else unflatten(self.signature.output, outputs)

    forward.__doc__ = DeployedModule.forward.__doc__

    def _make_backend(
        self, artifact: PartsArtifact, guard: WeightsGuard, device: torch.device | str | None
    ) -> PartsBackend:
        inside = replace(self._runtime_config, out_of_range="error")  # PartsModule itself checks the whole call first
        return PartsBackend(artifact, guard, inside, None if device is None else torch.device(device))

    @classmethod
    def from_saved(
        cls: type[P],
        artifact: Any,
        path: str | Path,
        device: torch.device | None,
        runtime_config: RuntimeConfig,
        reference: nn.Module | None,
    ) -> P:
        has_gpu_engines = artifact.hardware is not None
        if device is not None and (device.type == "cuda") != has_gpu_engines and artifact.engines:
            raise DeviceError(
                f"model in parts '{path}'",
                got=f"device {device}",
                allowed="a CUDA device" if has_gpu_engines else "the CPU, where ONNX Runtime runs its engines",
                fix="leave out device" + (", or pass runtime='onnxruntime'" if has_gpu_engines else ""),
            )
        if has_gpu_engines and (device is None or cast("int | None", device.index) is None):
            device = torch.device("cuda", torch.cuda.current_device())
        module = cls(artifact, None, device, runtime_config, reference)
        module._backend.bind(device or torch.device("cpu"))
        return module

    @property
    def _artifact(self) -> PartsArtifact:
        return self._backend.artifact

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """Every place in the user's code that no engine takes."""
        artifact = self._artifact
        return SavedCut.from_json(artifact.read(CUT), f"{artifact}").obstacles

    def trim(self) -> None:
        """Wait for calls in flight and give back the engines' working memory and contexts, and CUDA graphs.

        The engines stay; the next calls of each shape are slower. CUDA graphs of your own that hold calls of this
        module must not be launched any more. Where ONNX Runtime answers, there is nothing to give back.
        """
        self._backend.trim()

    def explain(self, sample_input: Any = None) -> Explanation:
        """Say what runs where, with the share of the time of each part in calls with this input.

        Args:
            sample_input: as for `deploy`; None for invented inputs at the opt sizes.
        """
        leaves = self._leaves_to_explain(sample_input)
        self.infer(leaves)  # the engines are live from now on
        explanation = time_calls(lambda: self.infer(leaves), self._backend.record)
        return replace(explanation, obstacles=self.timed_obstacles(leaves))

    def timed_obstacles(self, leaves: Sequence[torch.Tensor]) -> tuple[Obstacle, ...]:
        """The obstacles, each with the time that it takes in one call.

        Args:
            leaves: as for `infer`.
        """
        self._check_call(leaves)
        seconds = self._backend.bind(leaves[0].device).time_operators(
            [leaf.to(torch_dtype(spec.dtype)) for spec, leaf in zip(self.signature.inputs, leaves, strict=True)]
        )
        times = {place: 1e6 * one for place, one in seconds.items()}
        return tuple(replace(one, microseconds=times.get((one.operator, one.source))) for one in self.obstacles)


def placement_of(module: PartsModule, device: torch.device) -> list[GraphPartRecord]:
    """What runs where in a module that has answered a call on this device."""
    return module._backend.bind(device).placement(module.obstacles)  # pyright: ignore[reportPrivateUsage]  # same file
