"""The facts that two deploys must share for one engine to serve both, as JSON values for cache keys.

Enters: a model or its exported graph, and the rest of the request. Leaves: facts to be hashed. Separate because one
place decides which differences between two deploys matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from torch2engine.artifact.manifest_fields import encode_non_finite
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import build_environment
from torch2engine.builder.onnx_fingerprint import refittable_fingerprint
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.fingerprint import fingerprints
from torch2engine.core.config import Precision, Tolerance, Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.deploy_steps.model_attributes import ModelAttributes
from torch2engine.deploy_steps.request import DeployRequest

__all__ = ["graph_facts", "incomparable_attribute", "model_facts", "request_facts", "sample_facts"]

_LIBRARIES = ("ml-dtypes", "nvidia-modelopt", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


def model_facts(
    request: DeployRequest, cache_key: str, live_parameters: Sequence[LiveParameter] = ()
) -> dict[str, Any] | None:
    """The facts that tell one model from another, where the caller's cache_key stands for its code.

    Args:
        request: with the model.
        cache_key: the caller's.
        live_parameters: those whose values the engine does not hold.

    Returns:
        the facts; None for a model with tensors whose values can't be read, or other attributes that can't be compared.
        `incomparable_attribute` tells which.
    """
    # All tensors count. So a cache_key finds nothing if it is used again for a second model or for other weights.
    state = dict(request.model.named_parameters(remove_duplicate=False))
    state |= dict(request.model.named_buffers(remove_duplicate=False))
    try:
        attributes = ModelAttributes(request.model)
    except InputError:
        return None
    tensors = state | attributes.tensors
    if not all(_has_plain_values(tensor) for tensor in tensors.values()):
        return None
    live = {one.path for one in live_parameters}
    fixed = {path: tensor for path, tensor in tensors.items() if path not in live}
    return {
        "cache_key": cache_key,
        "attributes": attributes.facts,
        "tensors": {path: [list(tensor.shape), str(tensor.dtype)] for path, tensor in tensors.items()},
        # A refit replaces the values of parameters and buffers, but not those of other attributes.
        "values": fingerprints(attributes.tensors if request.config.refittable else fixed),
    }


def incomparable_attribute(model: nn.Module) -> str:
    """Say which attribute stops `model_facts` from comparing a model; "" if none does, or if a tensor is the cause."""
    try:
        ModelAttributes(model)
    except InputError as error:
        return str(error)
    return ""


def graph_facts(artifact: OnnxArtifact, refittable: bool) -> dict[str, Any]:
    """The facts that tell one exported model from another.

    Args:
        artifact: the exported model.
        refittable: leave out the values of weights that a refit replaces.
    """
    if refittable:
        hashes = refittable_fingerprint(artifact)
    else:
        hashes = {name: entry["sha256"] for name, entry in artifact.manifest()["files"].items()}
    return {"graph": hashes, "precision": artifact.precision}


def request_facts(request: DeployRequest, captured: CapturedCall) -> dict[str, Any]:
    """The facts that decide, beside the model, which ONNX graph is built and how; the current GPU is part of them."""
    tolerance = request.tolerance
    sample = None if request.has_calibration else sample_facts(request.precision, [captured.sample, *captured.examples])
    outputs = [[spec.name, spec.dtype] for spec in captured.signature.outputs]  # the sample decides their shapes
    output_axes = {name: {str(dim): axis for dim, axis in axes.items()} for name, axes in captured.output_axes.items()}
    return {
        **build_environment(request.config),
        "signature": encode_non_finite(replace(captured.signature, outputs=()).to_json()),
        "outputs": [outputs, output_axes],
        "profiles": [profile.to_json() for profile in captured.profiles],
        "asked": asdict(request.precision),
        "calibrated": request.has_calibration,
        "sample": sample,
        "tolerance": _tolerance_facts(tolerance),
        "libraries": {name: installed for name in _LIBRARIES if (installed := _library_version(name))},
    }


def _tolerance_facts(tolerance: Tolerances | None) -> Any:
    if tolerance is None:
        return None
    if isinstance(tolerance, Tolerance):
        return asdict(tolerance)
    return {name: asdict(one) for name, one in tolerance.items()}


def sample_facts(precision: Precision, inputs: Sequence[Sequence[torch.Tensor]]) -> list[Any] | None:
    """The facts that lowering takes from the sample and the examples, where there are no calibration data.

    The ranges of a quantised precision follow from the sample's values. In half precision the sample only shows what
    may overflow. So only the size of its largest value counts, as a power of two. A new random sample of the same kind
    then has the same facts.
    """
    if not precision.changes_graph:
        return None
    if precision.is_quantized:
        return [fingerprints({"": leaf})[""] for leaves in inputs for leaf in leaves]
    exponents: list[int] = []
    for leaves in zip(*inputs, strict=True):  # one input of the model in all calls
        if leaves[0].is_floating_point() and all(leaf.numel() for leaf in leaves):
            exponents.append(max(math.frexp(float(leaf.abs().max()))[1] for leaf in leaves))
    return exponents


def _has_plain_values(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor are plain bits in memory."""
    is_known_class = type(tensor) in (torch.Tensor, nn.Parameter)
    return is_known_class and tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)


def _library_version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
