"""`OnnxArtifact` → `ORTModule`: the exported model on the CPU, called like the PyTorch module.

Enters: CPU tensors. Leaves: fresh CPU tensors. Separate so that a machine without a GPU keeps the interface, the checks
and the errors of TRTModule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from torch2engine.artifact.artifact import require_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError
from torch2engine.core.package import public
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.deployed_module import DeployedModule, Model_co
from torch2engine.deployed.made_inputs import zeros
from torch2engine.deployed.onnxruntime.ort_backend import OnnxRuntimeBackend

if TYPE_CHECKING:
    from torch2engine.deployed.deploy_report import DeployReport

__all__ = ["ORTModule"]

R = TypeVar("R", bound="ORTModule[Any]")


@public
class ORTModule(DeployedModule[OnnxRuntimeBackend, Model_co]):
    """The exported model on ONNX Runtime's CPU provider, in the model's place.

    Args:
        artifact: the exported model.
        report: what deploy() found, or None.
        runtime_config: only out_of_range means something here.
        reference: the PyTorch module that answers under out_of_range="eager". It is kept alive. A copy or a pickle of
            this module does not take it along.

    Raises:
        InputError: an option that only a GPU engine has, or a reference that does not fit out_of_range.

    >>> module = t2e.ORTModule(onnx)
    >>> module
    ORTModule(x: float32[batch, 3, 64, 64] -> output: float32[batch, 10]; batch 1..32 (opt 8); fp32, device=cpu)
    >>> module(sample).shape
    torch.Size([8, 10])
    """

    def __init__(
        self,
        artifact: OnnxArtifact,
        report: DeployReport | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        require_artifact("ORTModule", artifact, OnnxArtifact)
        super().__init__(artifact, report, runtime_config, reference)
        runtime_config.check_cpu("ORTModule")

    def _make_backend(
        self, artifact: OnnxArtifact, guard: WeightsGuard, device: torch.device | str | None
    ) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(artifact, guard)

    @classmethod
    def from_saved(
        cls: type[R],
        artifact: Any,
        path: str | Path,
        device: torch.device | None,
        runtime_config: RuntimeConfig,
        reference: nn.Module | None,
    ) -> R:
        if device is not None and device.type != "cpu":
            build = f"torch2engine.build(torch2engine.OnnxArtifact.load({str(path)!r}))"
            raise DeviceError(
                f"exported model '{path}'",
                got=f"device {device}",
                allowed="the CPU, where ONNX Runtime runs it",
                fix=f"leave out device, or build an engine with {build}",
            )
        return cls(artifact, runtime_config=runtime_config, reference=reference)

    @property
    def _artifact(self) -> OnnxArtifact:
        return self._backend.artifact

    def warmup(self, shapes: Iterable[Mapping[str, int]] | None = None) -> None:
        """Answer zeros at some shapes, so that the first real call finds the session open.

        Args, Raises: as `TRTModule.warmup`.
        """
        for inputs in zeros(self.signature, self._artifact.profiles, shapes, self.device):
            self.infer(inputs)

    def trim(self) -> None:
        """Close the session; the next call opens it anew."""
        self._backend.close()
