"""A saved artifact → a deployed module, by the table of backends.

Enters: an artifact. Leaves: a module of the backend that runs it. Separate because this table is the one place that
knows all backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.deployed.deployed_module import DeployedModule

__all__ = ["BACKENDS", "BackendEntry", "module_of_artifact"]


@dataclass(frozen=True)
class BackendEntry:
    """One backend of the package.

    Args:
        runs: the kind of artifact that it runs.
        module: the file with its module class; it is imported at the first use, since it needs foreign libraries.
        class_name: that class.
    """

    runs: type[Artifact]
    module: str
    class_name: str

    def module_class(self) -> type[DeployedModule[Any]]:
        """Return the class of its modules."""
        return getattr(import_module(self.module), self.class_name)


BACKENDS = {
    "tensorrt": BackendEntry(EngineArtifact, "torch2engine.deployed.trt.trt_module", "TRTModule"),
    "onnxruntime": BackendEntry(OnnxArtifact, "torch2engine.deployed.onnxruntime.ort_module", "ORTModule"),
}
"""The word in deploy(runtime=...) → the backend. A loaded artifact takes the first row that runs what was saved."""

_IN_PARTS = BackendEntry(PartsArtifact, "torch2engine.fallback.parts_module", "PartsModule")
"""Runs the engines of several rows, in turn with PyTorch; no word in deploy() stands for it."""


def module_of_artifact(
    artifact: Artifact,
    path: str | Path,
    device: torch.device | str | None,
    runtime_config: RuntimeConfig,
    reference: nn.Module | None,
) -> DeployedModule[Any]:
    """Make the module of the backend that runs what was saved.

    Args:
        artifact: what was saved.
        path: where it lay, for messages.
        device, runtime_config, reference: as for `torch2engine.load`.

    Raises:
        ArtifactError, InstallationError, DeviceError, InputError: as `torch2engine.load`.
    """
    target = None if device is None else torch.device(device)
    entry = next(entry for entry in (*BACKENDS.values(), _IN_PARTS) if isinstance(artifact, entry.runs))
    return entry.module_class().from_saved(artifact, path, target, runtime_config, reference)
