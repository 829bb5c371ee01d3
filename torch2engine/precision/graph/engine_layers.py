"""TensorRT's list of an engine's layers → layers, and the precision of each ONNX node's multiply-adds.

Enters: the JSON of TensorRT's engine inspector. Leaves: `Layer` values. Separate because that JSON has no stable
schema, and only this file may know its words.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch2engine.core.precision_report import RECURRENT, UNKNOWN, WITHOUT_FLOATS, MultiplyAddNode
from torch2engine.core.precisions import PRECISION_TYPES

__all__ = ["Layer", "Multiplies", "engine_precisions", "layers_of_modules", "read_layers"]

# Unit or record separators stand between the entries, and the last may end with a remark ("__gemm_from_conv1x1").
_ENTRY = re.compile(r"[\x1e\x1f]|(?=\[ONNX Layer: )")
_NODE = re.compile(r"\[ONNX Layer: (.*)\]")
_TYPE_PATTERNS = {row.name: re.compile(row.inspector_words) for row in PRECISION_TYPES.values() if row.inspector_words}
# TensorRT-RTX 1.6 calls a convolution "correlation", TensorRT "CaskConvolution".
_SURE = re.compile(r"correlation|convolution|deconv|gemm|matrix_?multiply|matmul|fully_?connected", re.IGNORECASE)
_FUSED = re.compile(r"fusion|attention|mha", re.IGNORECASE)
_ATTENTION = re.compile(r"^_+(gemm_|fused_)?f?mha")  # generated kernels' names


class Multiplies(IntEnum):
    """Whether a layer computes a convolution or matrix product, by its kind and name."""

    NO = 0
    MAYBE = 1
    SURELY = 2


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Args:
        name: TensorRT's.
        kind: TensorRT's word for it.
        nodes: names of the ONNX nodes in it, as far as TensorRT lists them.
        precision: a name of the table of precisions. For a convolution or matrix product it is the arithmetic; else the
            widest type that the layer reads, or writes if it reads nothing; "" for one without such numbers.
        multiplies: whether it computes a convolution or matrix product.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    precision: str
    multiplies: Multiplies = Multiplies.NO


def read_layers(text: str) -> tuple[Layer, ...]:
    """Read the inspector's JSON; give nothing if its words are not known.

    Args:
        text: of a whole engine; one that was built without detailed profiling verbosity has names alone.
    """
    try:
        entries: list[Any] = json.loads(text, strict=False)["Layers"] if text else []
        return tuple(_layer(entry) for entry in entries if hasattr(entry, "get"))  # without details there are names
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()


def engine_precisions(layers: Sequence[Layer], nodes: Sequence[MultiplyAddNode]) -> dict[str, str]:
    """Find the precision of nodes, by their names; "unknown" where TensorRT does not list them.

    Args:
        layers: of the engine.
        nodes: of the graph.
    """
    layers_of_node: dict[str, list[Layer]] = {node.name: [] for node in nodes}
    nameless_precisions: set[str] = set()  # of products inside loops, such as a recurrent layer's, which name no node
    for layer in layers:
        names = layers_of_node.keys() & set(layer.nodes)
        for name in names:
            layers_of_node[name].append(layer)
        if not names and layer.multiplies == Multiplies.SURELY:
            nameless_precisions.add(layer.precision)
    recurrent_precisions = {node.precision for node in nodes if node.op in RECURRENT}
    # With recurrent layers in several types, it is unknown which nameless product belongs to which.
    is_ambiguous = len(nameless_precisions) > 1 and nameless_precisions <= recurrent_precisions
    found: dict[str, str] = {}
    for node in nodes:
        candidates = layers_of_node[node.name]
        surest = max((layer.multiplies for layer in candidates), default=Multiplies.NO)
        precisions: set[str] = set()
        if surest != Multiplies.NO:
            precisions = {layer.precision for layer in candidates if layer.multiplies == surest}
        elif node.op in RECURRENT and candidates and not is_ambiguous:
            precisions = {layer.precision for layer in candidates} | nameless_precisions
        found[node.name] = _widest(precisions) or UNKNOWN
    return found


def layers_of_modules(layers: Sequence[Layer], module_of_node: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Count the layers of each torch module by precision; a layer of several modules counts in each.

    Args:
        layers: of the engine; those that list no node of the graph are left out.
        module_of_node: the torch module's path of every node of the graph.
    """
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        for module in {module_of_node[name] for name in layer.nodes if name in module_of_node}:
            counts.setdefault(module, Counter())[layer.precision or WITHOUT_FLOATS] += 1
    ordered = dict.fromkeys(module_of_node.values())  # as in the graph
    return {module: dict(sorted(counts[module].items())) for module in ordered if module in counts}


def _layer(entry: Mapping[str, Any]) -> Layer:
    name = str(entry.get("Name", ""))
    kind = str(entry.get("LayerType", ""))
    multiplies = Multiplies.NO
    if _SURE.search(kind):
        multiplies = Multiplies.SURELY
    elif _FUSED.search(kind) or _ATTENTION.search(name):
        multiplies = Multiplies.MAYBE
    inputs = [tensor for tensor in entry.get("Inputs") or () if _precision_of(tensor)]
    if multiplies != Multiplies.NO:
        precision = _arithmetic(inputs, _weight_precision(entry))
    else:
        outputs = entry.get("Outputs") or ()
        precision = _widest(map(_precision_of, inputs)) or _widest(map(_precision_of, outputs))
    return Layer(name, kind, _node_names(str(entry.get("Metadata") or "")), precision, multiplies)


def _node_names(metadata: str) -> tuple[str, ...]:
    return tuple(match[1] for part in _ENTRY.split(metadata) if (match := _NODE.match(part)))


def _arithmetic(inputs: Sequence[Mapping[str, Any]], weight_precision: str) -> str:
    """Find the precision of a product, from the tensors that it reads and its weight's type.

    Among the tensors may be a residual in another type, and weights may be narrower than the arithmetic.
    """
    if weight_precision:
        precisions = {_precision_of(tensor) for tensor in inputs}
        return weight_precision if weight_precision in precisions else _widest({*precisions, weight_precision})
    matrices = [tensor for tensor in inputs if _rank(tensor) > 1] or inputs
    counts = Counter(map(_precision_of, matrices))
    return _widest(precision for precision in counts if counts[precision] == max(counts.values()))


def _weight_precision(entry: Mapping[str, Any]) -> str:
    """Find the type of the largest constant that is no mere vector, or ""."""
    if isinstance(entry.get("Weights"), dict):  # TensorRT 10
        return _precision_in(entry["Weights"].get("Type", ""))
    matrices = [tensor for tensor in entry.get("Constants") or () if _rank(tensor) > 1]
    return _precision_of(max(matrices, key=_element_count)) if matrices else ""


def _precision_of(tensor: Mapping[str, Any]) -> str:
    return _precision_in(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _precision_in(words: object) -> str:
    """Find the precision in TensorRT's words for a type, or ""."""
    return next((precision for precision, pattern in _TYPE_PATTERNS.items() if pattern.search(str(words))), "")


def _rank(tensor: Mapping[str, Any]) -> int:
    """Count the dimensions that are not 1."""
    return sum(size != 1 for size in tensor.get("Dimensions") or ())


def _element_count(tensor: Mapping[str, Any]) -> int:
    return math.prod(abs(int(size)) for size in tensor.get("Dimensions") or ())


def _widest(precisions: Iterable[str]) -> str:
    """Find the precision with the most bits, or ""."""
    return max(sorted(filter(None, precisions)), key=lambda precision: PRECISION_TYPES[precision].bits, default="")
