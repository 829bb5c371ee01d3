"""torch2engine: from a live torch.nn.Module to a TensorRT engine that is called like the module.

    import torch2engine as t2e

    module = t2e.deploy(model, sample_input, dynamic_axes={"x": {0: "batch"}})
    y = module(x)

Enters: the first use of a public name. Leaves: that name, from the file it lives in. Separate because importing
it must stay instant: it loads no torch, ONNX or TensorRT until a name is used (PEP 562).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch2engine.core.version import __version__

if TYPE_CHECKING:
    from torch2engine import testing
    from torch2engine.artifact.bundle import bundle
    from torch2engine.artifact.bundle_artifact import BundleArtifact
    from torch2engine.artifact.engine_artifact import EngineArtifact
    from torch2engine.artifact.engine_cache import EngineCache
    from torch2engine.artifact.onnx_artifact import OnnxArtifact
    from torch2engine.artifact.parts_artifact import PartsArtifact
    from torch2engine.builder.build import build
    from torch2engine.capture.recording import Recording, record
    from torch2engine.core.config import Budget, BuildConfig, Precision, RuntimeConfig, Tolerance
    from torch2engine.core.errors import (
        ArtifactError,
        BuildError,
        DeviceError,
        DtypeError,
        DynamicAxisError,
        ExportError,
        InputError,
        InstallationError,
        ParityError,
        PrecisionError,
        RefitError,
        ShapeError,
        Torch2EngineError,
        UnsupportedOperatorError,
    )
    from torch2engine.core.finding import Finding
    from torch2engine.core.pytree import Inputs
    from torch2engine.core.shared_memory import SharedMemory
    from torch2engine.core.spec import Axis, Preprocess, Profile
    from torch2engine.deploy import deploy
    from torch2engine.deploy_steps.public_functions.check import check
    from torch2engine.deploy_steps.public_functions.diagnose import diagnose
    from torch2engine.deploy_steps.public_functions.diagnosis import Diagnosis
    from torch2engine.deploy_steps.public_functions.export import export
    from torch2engine.deploy_steps.public_functions.load import load
    from torch2engine.deployed.deploy_report import DeployReport
    from torch2engine.deployed.explanation import Explanation
    from torch2engine.deployed.live.live_module import LiveModule
    from torch2engine.deployed.onnxruntime.ort_module import ORTModule
    from torch2engine.deployed.trt.trt_module import TRTModule
    from torch2engine.fallback.parts_module import PartsModule
    from torch2engine.fallback.submodules import DeployedSubmodules, load_submodules
    from torch2engine.fallback.torch_compile import (
        compile_backend,
        compile_if_faster,
        deploy_submodules,
        explain,
    )
    from torch2engine.parity.parity_report import ParityReport
    from torch2engine.precision.computed_precisions import precision_report
    from torch2engine.precision.module_sensitivity import sensitivity
    from torch2engine.serving.hub import from_hub, push_to_hub
    from torch2engine.serving.processor.processor import Processor
    from torch2engine.serving.triton import export_triton

__all__ = [
    "ArtifactError",
    "Axis",
    "Budget",
    "BuildConfig",
    "BuildError",
    "BundleArtifact",
    "DeployReport",
    "DeployedSubmodules",
    "DeviceError",
    "Diagnosis",
    "DtypeError",
    "DynamicAxisError",
    "EngineArtifact",
    "EngineCache",
    "Explanation",
    "ExportError",
    "Finding",
    "InputError",
    "Inputs",
    "InstallationError",
    "LiveModule",
    "ORTModule",
    "OnnxArtifact",
    "ParityError",
    "ParityReport",
    "PartsArtifact",
    "PartsModule",
    "Precision",
    "PrecisionError",
    "Preprocess",
    "Processor",
    "Profile",
    "Recording",
    "RefitError",
    "RuntimeConfig",
    "ShapeError",
    "SharedMemory",
    "TRTModule",
    "Tolerance",
    "Torch2EngineError",
    "UnsupportedOperatorError",
    "__version__",
    "build",
    "bundle",
    "check",
    "compile_backend",
    "compile_if_faster",
    "deploy",
    "deploy_submodules",
    "diagnose",
    "explain",
    "export",
    "export_triton",
    "from_hub",
    "load",
    "load_submodules",
    "precision_report",
    "push_to_hub",
    "record",
    "sensitivity",
    "testing",
]

# Public name -> the file it lives in; a name that is a file itself stands alone.
_HOMES = {
    "BundleArtifact": "artifact.bundle_artifact",
    "bundle": "artifact.bundle",
    "EngineArtifact": "artifact.engine_artifact",
    "OnnxArtifact": "artifact.onnx_artifact",
    "PartsArtifact": "artifact.parts_artifact",
    "build": "builder.build",
    "EngineCache": "artifact.engine_cache",
    "Budget": "core.config",
    "BuildConfig": "core.config",
    "Precision": "core.config",
    "RuntimeConfig": "core.config",
    "Tolerance": "core.config",
    "SharedMemory": "core.shared_memory",
    "Finding": "core.finding",
    "deploy": "deploy",
    "Explanation": "deployed.explanation",
    "LiveModule": "deployed.live.live_module",
    "PartsModule": "fallback.parts_module",
    "DeployedSubmodules": "fallback.submodules",
    "load_submodules": "fallback.submodules",
    "TRTModule": "deployed.trt.trt_module",
    "DeployReport": "deployed.deploy_report",
    "ORTModule": "deployed.onnxruntime.ort_module",
    "ParityReport": "parity.parity_report",
    "precision_report": "precision.computed_precisions",
    "sensitivity": "precision.module_sensitivity",
    "Processor": "serving.processor.processor",
    "Axis": "core.spec",
    "Preprocess": "core.spec",
    "Profile": "core.spec",
    "check": "deploy_steps.public_functions.check",
    "diagnose": "deploy_steps.public_functions.diagnose",
    "Diagnosis": "deploy_steps.public_functions.diagnosis",
    "export": "deploy_steps.public_functions.export",
    "export_triton": "serving.triton",
    "from_hub": "serving.hub",
    "push_to_hub": "serving.hub",
    "load": "deploy_steps.public_functions.load",
    "testing": "",
    "Inputs": "core.pytree",
    "Recording": "capture.recording",
    "record": "capture.recording",
    "compile_backend": "fallback.torch_compile",
    "compile_if_faster": "fallback.torch_compile",
    "deploy_submodules": "fallback.torch_compile",
    "explain": "fallback.torch_compile",
}


def _find(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "core.errors")
    value = getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


# Not as a function of that name: a type checker that saw it would believe in any misspelt name.
globals()["__getattr__"] = _find


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps `torch2engine.deploy` the function, though a file has this name too.

    The import system sets an imported file as an attribute of the package, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and _HOMES.get(name)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
