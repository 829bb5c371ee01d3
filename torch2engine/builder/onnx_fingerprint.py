"""An `OnnxArtifact` → SHA-256 of each of its files, of only what decides the engine.

Enters: an artifact. Leaves: hashes by file name, for the keys of the cache. Separate because everything that TensorRT
reads must change a key. What it does not read, such as source lines, must not.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import onnx as _typed_onnx

from torch2engine.artifact.manifest import canonical
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import ONNX, WEIGHTS
from torch2engine.onnx_graph.walk import subgraphs

__all__ = ["engine_fingerprint", "refittable_fingerprint"]

# onnx's own annotations are incomplete
onnx = cast("Any", _typed_onnx)


def engine_fingerprint(artifact: OnnxArtifact, *, accepts_other_weights: bool = False) -> dict[str, str]:
    """Hash what TensorRT reads of a model; it does not read remarks such as source lines.

    Args:
        artifact: the model.
        accepts_other_weights: leave out the values of weights that a refit replaces.

    Returns:
        SHA-256 by file name.
    """
    model = onnx.load(str(artifact.checked_onnx_path), load_external_data=accepts_other_weights)
    _clear_remarks(model)
    for function in model.functions:
        _clear_remarks(function)
        _clear_node_remarks(function.node)
    _clear_graph_remarks(model.graph)
    if accepts_other_weights:  # external data are in the model by now
        hashes = {WEIGHTS: hashlib.sha256(_clear_weight_values(model, artifact)).hexdigest()}
    else:
        hashes = {name: entry["sha256"] for name, entry in artifact.manifest()["files"].items()}
    hashes[ONNX] = _hash_model(model)
    return hashes


def refittable_fingerprint(artifact: OnnxArtifact) -> dict[str, str]:
    """Hash a refittable model, remarks included, without the values of weights that a refit replaces.

    Returns:
        SHA-256 by file name.
    """
    model = onnx.load(str(artifact.checked_onnx_path))
    program = _clear_weight_values(model, artifact)
    return {WEIGHTS: hashlib.sha256(program).hexdigest(), ONNX: _hash_model(model)}


def _hash_model(model: Any) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _clear_weight_values(model: Any, artifact: OnnxArtifact) -> bytes:
    """Take the values of replaceable weights out of a model.

    Returns:
        the weight program, without its own fingerprint of these values.
    """
    program = json.loads(artifact.read(WEIGHTS))
    del program["fingerprint"]
    for tensor in model.graph.initializer:
        if tensor.name in program["weights"]:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return canonical(program)


def _clear_remarks(part: Any) -> None:
    part.ClearField("doc_string")
    del part.metadata_props[:]


def _clear_graph_remarks(graph: Any) -> None:
    _clear_remarks(graph)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _clear_remarks(value)
    _clear_node_remarks(graph.node)


def _clear_node_remarks(nodes: Any) -> None:
    for node in nodes:
        _clear_remarks(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for graph in subgraphs(node):
            _clear_graph_remarks(graph)
