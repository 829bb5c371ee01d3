"""TensorRT's own account of an engine → its layers, and what each ONNX node's multiply-adds are computed in.

Enters: the JSON of TensorRT's engine inspector. Leaves: `Layer` values. A room of its own because that JSON has no
schema that holds from version to version, and nobody else is to know its words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch2engine.precision.graph.shares import RECURRENT, UNKNOWN, Product

__all__ = ["Layer", "computed_in", "read_layers"]

# Entries are parted by unit or record separators, and the last may have a remark behind it ("__gemm_from_conv1x1").
_ENTRY = re.compile(r"[\x1e\x1f]|(?=\[ONNX Layer: )")
_NODE = re.compile(r"\[ONNX Layer: (.*)\]")
# TensorRT 11 and RTX say "Half"; TensorRT 10 may say "Channel major FP16 format where channel % 8 == 0". See
# https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
_TYPES = (
    ("bf16", re.compile(r"BF16|BFloat16")),
    ("fp16", re.compile(r"FP16|Half")),
    ("fp8", re.compile(r"FP8")),
    ("int8", re.compile(r"\bInt8|INT8")),
    ("fp32", re.compile(r"FP32|\bFloat\b")),
)
_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8}
# What multiplies, the surest first: TensorRT-RTX 1.6 calls a convolution "correlation", TensorRT "CaskConvolution".
_ALONE = re.compile(r"correlation|convolution|deconv|gemm|matrix_?multiply|matmul|fully_?connected", re.IGNORECASE)
_FUSED = re.compile(r"fusion|attention|mha", re.IGNORECASE)
_ATTENTION = re.compile(r"^_+(gemm_|fused_)?f?mha")  # generated kernels' names
_NOT, _MAYBE, _SURELY = range(3)


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Args:
        name: TensorRT's.
        kind: TensorRT's word for it.
        nodes: names of the ONNX nodes that it is made of, as far as TensorRT says so.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8"; of a product its arithmetic, else the widest type that the
            layer reads (or writes, if it reads nothing); "" for one without such numbers.
        multiplies: how sure it is that it computes a convolution or matrix product: 0, 1 or 2.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    precision: str
    multiplies: int = _NOT


def read_layers(text: str) -> tuple[Layer, ...]:
    """Read the inspector's JSON; nothing, if it is in words that are not known.

    Args:
        text: of a whole engine; one that was built without detailed profiling verbosity has names alone.
    """
    try:
        entries = cast("list[Any]", json.loads(text, strict=False)["Layers"]) if text else []
        return tuple(_layer(cast("dict[str, Any]", entry)) for entry in entries if isinstance(entry, dict))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()


def computed_in(layers: Sequence[Layer], products: Sequence[Product]) -> dict[str, str]:
    """What products are computed in, by their nodes' names; "unknown" where TensorRT does not tell.

    Args:
        layers: of the engine.
        products: of the graph.
    """
    of_node: dict[str, list[Layer]] = {one.name: [] for one in products}
    loose: set[str] = set()  # those inside loops, such as a recurrent layer's, name no product
    for layer in layers:
        mine = of_node.keys() & set(layer.nodes)
        for name in mine:
            of_node[name].append(layer)
        if not mine and layer.multiplies == _SURELY:
            loose.add(layer.precision)
    asked = {one.precision for one in products if one.op in RECURRENT}
    found: dict[str, str] = {}
    for one in products:
        around = of_node[one.name]
        surest = max((layer.multiplies for layer in around), default=_NOT)
        if surest != _NOT:
            kinds = {layer.precision for layer in around if layer.multiplies == surest}
        elif one.op in RECURRENT and around and not (len(loose) > 1 and loose <= asked):
            kinds = {layer.precision for layer in around} | loose
        else:  # of several recurrent layers in several types nobody says which is whose
            kinds = set[str]()
        found[one.name] = _widest(kinds) or UNKNOWN
    return found


def _layer(entry: Mapping[str, Any]) -> Layer:
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    multiplies = _NOT
    if _ALONE.search(kind):
        multiplies = _SURELY
    elif _FUSED.search(kind) or _ATTENTION.search(name):
        multiplies = _MAYBE
    read = [(_type(tensor), _sides(tensor)) for tensor in entry.get("Inputs") or ()]
    if multiplies != _NOT:
        precision = _arithmetic([one for one in read if one[0]], _weight(entry))
    else:
        written = [_type(tensor) for tensor in entry.get("Outputs") or ()]
        precision = _widest(kind for kind, _ in read) or _widest(written)
    return Layer(name, kind, _nodes(str(entry.get("Metadata") or "")), precision, multiplies)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(match[1] for part in _ENTRY.split(metadata) if (match := _NODE.match(part)))


def _arithmetic(read: Sequence[tuple[str, int]], weight: str) -> str:
    """What a product is computed in, from what it reads and its weight's type.

    Among what it reads may be a residual in another type, and weights may be narrower than the arithmetic.
    """
    if weight:
        kinds = {kind for kind, _ in read}
        return weight if weight in kinds else _widest({*kinds, weight})
    whole = [kind for kind, sides in read if sides > 1] or [kind for kind, _ in read]
    most = Counter(whole)
    return _widest(kind for kind in most if most[kind] == max(most.values()))


def _weight(entry: Mapping[str, Any]) -> str:
    """Type of the largest constant that is no mere vector, or ""."""
    if isinstance(entry.get("Weights"), dict):  # TensorRT 10
        return _typed(entry["Weights"].get("Type", ""))
    tensors = [tensor for tensor in entry.get("Constants") or () if _sides(tensor) > 1]
    return _type(max(tensors, key=_size)) if tensors else ""


def _type(tensor: Mapping[str, Any]) -> str:
    return _typed(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _typed(words: object) -> str:
    return next((word for word, pattern in _TYPES if pattern.search(str(words))), "")


def _sides(tensor: Mapping[str, Any]) -> int:
    return sum(size != 1 for size in tensor.get("Dimensions") or ())


def _size(tensor: Mapping[str, Any]) -> int:
    size = 1
    for side in tensor.get("Dimensions") or ():
        size *= abs(int(side))
    return size


def _widest(kinds: Iterable[str]) -> str:
    return max(sorted(kinds), key=lambda kind: _BITS.get(kind, 0), default="")
