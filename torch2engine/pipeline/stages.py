"""The stages between the model and the engine, each on its own: `export` and `check`.

Enters: a live module, or an artifact with the module that it came from. Leaves: an OnnxArtifact, or a ParityReport. A
room of its own because the stages never import each other: here, and in `deploy`, they are composed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import (
    RUNTIMES,
    BuildConfig,
    RuntimeConfig,
    Tolerance,
    require_choice,
    require_instance,
)
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.core.precisions import LOW_PRECISIONS
from torch2engine.core.spec import Preprocess
from torch2engine.exporter.export import export_onnx
from torch2engine.modules.deployed import DeployedModule, prove_split_axes
from torch2engine.modules.judge import judge
from torch2engine.modules.onnxruntime.module import ORTModule, StrictModule
from torch2engine.modules.trt.backend import require_cuda
from torch2engine.parity.report import ParityReport
from torch2engine.precision.parity_cases import parity_cases_for
from torch2engine.trt.gpu import require_gpu
from torch2engine.trt.library import find_tensorrt

__all__ = ["check", "choose_runtime", "export", "prove_split", "target_device"]


def export(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    profiles: Sequence[Any] | None = None,
    refittable: bool = False,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> OnnxArtifact:
    """Export a module to ONNX, without judging or building it.

    Args:
        model, sample_input, dynamic_axes, profiles, preprocess: as for `deploy`.
        refittable: write down how the graph's weights follow from the module's, for BuildConfig(refittable=True).

    Returns:
        the artifact; `save` keeps it, `torch2engine.build` makes an engine of it.

    Raises:
        InputError, DynamicAxisError, ExportError, UnsupportedOperatorError: as `deploy` does.
    """
    model = unwrap(model)
    with undisturbed(model):
        return export_onnx(capture_call(model, sample_input, dynamic_axes, profiles, preprocess), refittable)


def check(
    model: nn.Module, artifact: OnnxArtifact, sample_input: Any, *, tolerance: Tolerance | None = None
) -> ParityReport:
    """Compare an exported model with the module that it came from, by ONNX Runtime on the CPU.

    Args:
        model: the reference.
        artifact: what `export` made of it; its profiles say at which sizes to compare.
        sample_input: in the form that it was exported with.
        tolerance: by default `Tolerance.default` of the artifact's precision.

    Returns:
        the report; call its `raise_if_failed`.

    Raises:
        InputError, ShapeError: the sample does not fit the artifact's signature.
    """
    model = unwrap(model)
    with undisturbed(model):
        prepare = {spec.name: spec.preprocess for spec in artifact.signature.inputs if spec.preprocess is not None}
        theirs = [(spec.name, spec.dtype) for spec in artifact.signature.inputs]
        try:
            captured = capture_call(model, sample_input, preprocess=prepare)
        except InputError as error:
            if not error.subject.startswith("preprocess["):
                raise
            raise InputError("sample_input", got=error.allowed, allowed=f"the artifact's are {theirs}") from None
        ours = [(spec.name, spec.dtype) for spec in captured.signature.inputs]
        if ours != theirs:
            raise InputError("sample_input", got=f"inputs {ours}", allowed=f"the artifact's are {theirs}")
        artifact.signature.resolve([leaf.shape for leaf in captured.sample])
        captured = replace(captured, signature=artifact.signature, profiles=artifact.profiles)
        examples, notes = make_parity_cases(captured)
    examples = parity_cases_for(artifact.precision, examples)
    # A typed graph of a float32 model: ONNX Runtime's own answers would hide what overflows.
    floats = [spec.dtype for spec in (*artifact.signature.inputs, *artifact.signature.outputs)]
    typed = artifact.precision in LOW_PRECISIONS and "float32" in floats
    return judge(StrictModule(artifact) if typed else ORTModule(artifact), examples, tolerance, notes)


def prove_split(
    module: DeployedModule[Any], examples: Sequence[ParityCase], tolerance: Tolerance | None = None
) -> tuple[str, ...]:
    """Prove on the examples which axes may be split, if that is what the module does out of range.

    Returns:
        a sentence on every axis; nothing under another policy.

    Raises:
        InputError, ParityError: as `prove_split_axes`.
    """
    if module.runtime_config.out_of_range != "split":
        return ()
    calls = [[leaf.to(module.device) for leaf in example.inputs] for example in examples]
    return prove_split_axes(module, calls, tolerance)


def choose_runtime(runtime: str, config: BuildConfig, runtime_config: RuntimeConfig = RuntimeConfig()) -> str:
    """Settle "auto", and refuse "tensorrt" where it can't run, before any work is done.

    Raises:
        InputError: an unknown runtime, or options that it does not have.
        InstallationError: "tensorrt" without a usable TensorRT, GPU or CUDA build of PyTorch.
    """
    require_choice("runtime", runtime, RUNTIMES)
    require_instance("config", config, BuildConfig)
    require_instance("runtime_config", runtime_config, RuntimeConfig)
    if runtime == "onnxruntime":
        runtime_config.check_cpu("runtime='onnxruntime'")
        return runtime
    try:
        find_tensorrt(config.flavour)
        require_gpu()
        require_cuda()
    except InstallationError as error:
        if runtime == "tensorrt":
            raise
        ignored = runtime_config.only_gpu()
        without = f" without {ignored}, which it does not have" if ignored else ""
        text = f"deploying to ONNX Runtime on the CPU{without}, because TensorRT can't run: {error}"
        warnings.warn(text, stacklevel=3)
        return "onnxruntime"
    return "tensorrt"


def target_device(captured: CapturedCall) -> torch.device:
    """The GPU that the engine is for: the sample's, or PyTorch's current one for a sample on the CPU."""
    here = captured.sample[0].device
    return here if here.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
