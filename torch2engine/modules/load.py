"""A saved folder → a deployed module, by the table of backends.

Enters: the folder that `save` wrote. Leaves: a module of the backend that runs what is in it. Separate because this
table is the one place that knows all backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import ONNX
from torch2engine.core.config import RuntimeConfig, require_choice
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.modules.deployed import DeployedModule

__all__ = ["BACKENDS", "BackendEntry", "load"]


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
    "tensorrt": BackendEntry(EngineArtifact, "torch2engine.modules.trt.trt_module", "TRTModule"),
    "onnxruntime": BackendEntry(OnnxArtifact, "torch2engine.modules.onnxruntime.ort_module", "ORTModule"),
}
"""The word in deploy(runtime=...) → the backend. `load` takes the first row that runs what was saved."""

_IN_PARTS = BackendEntry(PartsArtifact, "torch2engine.fallback.parts_module", "PartsModule")
"""Runs the engines of several rows, in turn with PyTorch; no word in deploy() stands for it."""


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
    runtime: Literal["tensorrt", "onnxruntime"] | None = None,
) -> DeployedModule[Any]:
    """Load a saved artifact: an engine as `TRTModule`, an exported model as `ORTModule`, one in parts as `PartsModule`.

    Args:
        path: the folder that `save` wrote.
        device: for an engine a CUDA device, by default PyTorch's current one; an exported model runs on the CPU.
        runtime_config: how it answers; an exported model takes `out_of_range` alone and refuses the rest.
        reference: the PyTorch module that answers under out_of_range="eager".
        runtime: what runs it. None takes the runtime that it was saved for. "onnxruntime" runs the model.onnx that lies
            beside an engine, on the CPU.

    Raises:
        ArtifactError: corrupt, foreign, made for other hardware or another version, or an engine without model.onnx.
        InstallationError: no GPU, or no TensorRT of its flavour.
        DeviceError: `device` is a GPU for an exported model, or the CPU for an engine.
        InputError: a runtime that can't run it, options that it does not have, or a reference that is missing or has no
            use.
    """
    require_choice("runtime", runtime, (None, *BACKENDS))
    artifact = load_artifact(path, to_run=runtime != "onnxruntime")
    if isinstance(artifact, (EngineArtifact, PartsArtifact)) and runtime == "onnxruntime":
        artifact = artifact.exported()
    has_engine = isinstance(artifact, EngineArtifact)
    if isinstance(artifact, PartsArtifact):
        has_engine = artifact.hardware is not None
    if not has_engine and runtime == "tensorrt":
        in_parts = isinstance(artifact, PartsArtifact)
        raise InputError(
            "runtime",
            got=f"'tensorrt' for {'a model in parts of ONNX Runtime' if in_parts else 'an exported model'}",
            allowed="'onnxruntime' or None, since there is no engine in it",
            fix="deploy the model with runtime='tensorrt'"
            if in_parts
            else f"build one with torch2engine.build(torch2engine.OnnxArtifact.load({str(path)!r}))",
        )
    target = None if device is None else torch.device(device)
    entry = next(entry for entry in (*BACKENDS.values(), _IN_PARTS) if isinstance(artifact, entry.runs))
    try:
        return entry.module_class().from_saved(artifact, path, target, runtime_config, reference)
    except InstallationError as error:
        if ONNX not in artifact.files and not isinstance(artifact, PartsArtifact):
            raise
        fix = f"{error.fix}; or load it with runtime='onnxruntime', which runs its {ONNX} on the CPU"
        raise InstallationError(error.subject, got=error.got, allowed=error.allowed, fix=fix) from error
