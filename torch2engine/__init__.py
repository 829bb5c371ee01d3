"""torch2engine: from a live torch.nn.Module to a TensorRT engine that is called like the module.

    import torch2engine as t2e

    module = t2e.deploy(model, sample_input, dynamic_axes={"x": {0: "batch"}})
    y = module(x)

Enters: the first use of a public name. Leaves: that name, from the room it lives in. A room of its own because
importing it must stay instant: it loads no torch, ONNX or TensorRT until a name is used (PEP 562).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch2engine._version import __version__

if TYPE_CHECKING:
    from torch2engine import testing
    from torch2engine.artifact import EngineArtifact, OnnxArtifact
    from torch2engine.build import build
    from torch2engine.cache import EngineCache
    from torch2engine.config import Budget, BuildConfig, Precision, RuntimeConfig, Tolerance
    from torch2engine.deploy import deploy
    from torch2engine.errors import (
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
    from torch2engine.module import TRTModule, load
    from torch2engine.ort_module import ORTModule
    from torch2engine.parity import ParityReport
    from torch2engine.precisions import precision_report, sensitivity
    from torch2engine.runtime.processor import Processor
    from torch2engine.spec import Axis, Preprocess, Profile
    from torch2engine.stages import check, export
    from torch2engine.tree import Inputs

__all__ = [
    "ArtifactError",
    "Axis",
    "Budget",
    "BuildConfig",
    "BuildError",
    "DeviceError",
    "DtypeError",
    "DynamicAxisError",
    "EngineArtifact",
    "EngineCache",
    "ExportError",
    "InputError",
    "Inputs",
    "InstallationError",
    "ORTModule",
    "OnnxArtifact",
    "ParityError",
    "ParityReport",
    "Precision",
    "PrecisionError",
    "Preprocess",
    "Processor",
    "Profile",
    "RefitError",
    "RuntimeConfig",
    "ShapeError",
    "TRTModule",
    "Tolerance",
    "Torch2EngineError",
    "UnsupportedOperatorError",
    "__version__",
    "build",
    "check",
    "deploy",
    "export",
    "load",
    "precision_report",
    "sensitivity",
    "testing",
]

# Public name -> the room it lives in; a name that is a room itself stands alone.
_ROOMS = {
    "EngineArtifact": "artifact",
    "OnnxArtifact": "artifact",
    "build": "build",
    "EngineCache": "cache",
    "Budget": "config",
    "BuildConfig": "config",
    "Precision": "config",
    "RuntimeConfig": "config",
    "Tolerance": "config",
    "deploy": "deploy",
    "TRTModule": "module",
    "load": "module",
    "ORTModule": "ort_module",
    "ParityReport": "parity",
    "precision_report": "precisions",
    "sensitivity": "precisions",
    "Processor": "runtime.processor",
    "Axis": "spec",
    "Preprocess": "spec",
    "Profile": "spec",
    "check": "stages",
    "export": "stages",
    "testing": "",
    "Inputs": "tree",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = _ROOMS.get(name, "errors")
    value = getattr(import_module(f"{__name__}.{room}"), name) if room else import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps `torch2engine.deploy`, `.export` and `.build` the functions, though rooms have these names too.

    The import system sets an imported room as an attribute of the package, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and _ROOMS.get(name)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
