"""A path on the command line → a module that answers.

Enters: a folder that torch2engine saved, an ONNX file, or an engine file that somebody else built. Leaves: a deployed
module. Separate because checking, comparing, running and timing all begin with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.plan_file import PlanFile, read_plan_file
from torch2engine.builder.onnx_file import check_onnx_file, read_signature
from torch2engine.builder.source import make_build_source
from torch2engine.core.errors import DynamicAxisError, InputError, InstallationError
from torch2engine.core.spec import Axis, Signature
from torch2engine.deploy_steps.public_functions.load import load
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.trt.foreign_plan import adopt_plan

__all__ = ["Content", "import_onnx", "is_candidate_path", "open_candidate", "read_content", "with_cli_options"]

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")

Runtime = Literal["tensorrt", "onnxruntime"]
Content = OnnxArtifact | EngineArtifact | PartsArtifact | BundleArtifact | PlanFile | Signature
"""The content of a path: an artifact, an engine file of another tool, or the signature of an ONNX file."""


def is_candidate_path(text: str) -> bool:
    """Whether a text names a file or folder that `open_candidate` opens, and not a PyTorch module."""
    path = Path(text)
    return path.is_dir() or path.suffix in (".onnx", *_ENGINE_SUFFIXES)


def read_content(path: Path) -> Content:
    """Read what a path holds, without TensorRT and without a GPU.

    Returns:
        an artifact of a saved folder, a `PlanFile` of an engine file, the signature of an ONNX file.

    Raises:
        ArtifactError: damaged, or of another kind.
    """
    if path.suffix == ".onnx":
        check_onnx_file(path)
        return read_signature(onnx.load(str(path), load_external_data=False), path).signature
    return read_plan_file(path) if path.suffix in _ENGINE_SUFFIXES else load_artifact(path)


def open_candidate(
    path: Path, axes: Sequence[Axis] = (), runtime: Runtime | None = None, precision: str | None = None
) -> DeployedModule[Any]:
    """Make a module of what a path holds.

    Args:
        path: a folder that `save` wrote, an ONNX file, or an engine file.
        axes: the ranges of an ONNX file's dynamic dimensions.
        runtime: "onnxruntime" runs the exported model that lies beside an engine.
        precision: what a foreign engine computes in; by default by the dtypes of its inputs and outputs.

    Raises:
        ArtifactError: missing, damaged, or made for another TensorRT.
        InputError: axes that the file does not have, or a runtime that can't run it.
        InstallationError: no GPU, or no TensorRT of its flavour.
    """
    if path.suffix == ".onnx":
        return ORTModule(import_onnx(path, axes))
    if path.suffix not in _ENGINE_SUFFIXES:
        try:
            return load(path, runtime=runtime)
        except InstallationError as error:
            raise with_cli_options(error) from error
    file = read_plan_file(path)
    if runtime == "onnxruntime":
        raise InputError(
            "--runtime",
            got=f"onnxruntime for engine file '{path}'",
            allowed="an ONNX file, which ONNX Runtime runs",
            fix="give the ONNX file that the engine was built from",
        )
    try:
        return TRTModule(adopt_plan(file, precision))
    except InstallationError as error:
        raise InstallationError(
            f"engine file '{path}' of {file.flavour} {file.version}",
            got=f"{error.subject}: {error.got}",
            allowed=error.allowed,
            fix=f"{error.fix}; or give the ONNX file that it was built from, which needs no GPU",
        ) from error


def import_onnx(path: Path, axes: Sequence[Axis]) -> OnnxArtifact:
    """Make an artifact of an ONNX file from anywhere.

    Raises:
        ArtifactError: it is missing or not valid.
        DynamicAxisError: a dynamic dimension without a range.
    """
    profiles = {axis.name: axis.range for axis in axes}
    try:
        source = make_build_source(path, profiles or None, None)
    except DynamicAxisError as error:
        if error.subject != "profiles":
            raise
        raise DynamicAxisError(
            "--axis",
            axis=error.axis,
            got=error.got,
            allowed="NAME=MIN:OPT:MAX for every dynamic axis",
            fix=f"e.g. --axis {error.axis}=1:8:32",
        ) from error
    return source.artifact


def with_cli_options(error: InstallationError) -> InstallationError:
    """The same error, with options of the command line in the place of keyword arguments in its fix."""
    option = "--runtime onnxruntime"
    fix = error.fix
    for words in ("load it with runtime='onnxruntime'", "deploy with runtime='onnxruntime'"):
        fix = fix.replace(words, f"add {option}")
    return InstallationError(error.subject, got=error.got, allowed=error.allowed, fix=fix)
