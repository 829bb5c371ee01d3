"""An ONNX model and inputs → multiply-adds of each node, and the type that they are computed in.

Enters: a float32, typed or quantised model. Leaves: counts at the inputs' sizes. A room of its own because "how much is
low" is a question of arithmetic, not of nodes: a network's time is in its products.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.session import OrtSession
from torch2engine.onnx_graph.strict_rounding import write_strictly_rounded
from torch2engine.onnx_graph.tensor_types import tensor_types, without_weight_values
from torch2engine.precision.graph.shares import RECURRENT, Product

__all__ = ["products"]

_PREFIX = "torch2engine.shape/"
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", *RECURRENT)

Shape = Sequence[int]


def products(source: Path, inputs: Mapping[str, NDArray[Any]]) -> tuple[Product, ...]:
    """Every product of the main graph, in its order.

    Args:
        source: the model.
        inputs: arrays by name, float32 where the model takes float16 or bfloat16; their sizes decide the counts.
    """
    model = load_model(source)
    chosen = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    names = sorted({name for node in chosen for name in (*node.input, node.output[0]) if name})
    shapes = _inferred(model, {name: array.shape for name, array in inputs.items()})
    if unknown := [name for name in names if name not in shapes]:
        shapes |= _seen(source, unknown, inputs)
    of_node, low = node_modules(model), _types(model)
    return tuple(
        Product(
            name=node.name,
            op=node.op_type,
            module=of_node[node.name],
            precision=low[node.input[0]],
            multiply_adds=_count(node, [shapes.get(name, ()) for name in node.input], shapes.get(node.output[0], ())),
        )
        for node in chosen
    )


def _inferred(model: Any, sizes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """Shapes that ONNX's inference finds, given those of the inputs."""
    from onnx import helper, shape_inference

    small = without_weight_values(model)
    graph = small.graph
    del graph.value_info[:]  # and the outputs' are of other sizes
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, sizes[value.name]))
    inferred = shape_inference.infer_shapes(small, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _seen(source: Path, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes when the model runs, for those that depend on values."""
    from onnx import TensorProto, helper

    with tempfile.TemporaryDirectory(prefix="torch2engine-") as folder:
        twin = Path(folder) / "model.onnx"
        write_strictly_rounded(source, twin)  # has the same names, and ONNX Runtime can run it
        model = load_model(twin)
        del model.graph.output[:]
        for name in names:
            model.graph.node.append(helper.make_node("Shape", [name], [_PREFIX + name]))
            model.graph.output.append(helper.make_tensor_value_info(_PREFIX + name, TensorProto.INT64, None))
        save_model(model, twin)
        answers = OrtSession(twin, as_it_is=True)(inputs)
    return {name: tuple(int(size) for size in answers[_PREFIX + name]) for name in names}


def _types(model: Any) -> dict[str, str]:
    """What a product with this tensor as its first input computes in."""
    from onnx import TensorProto

    words: dict[int, str] = {
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "int8",
        TensorProto.FLOAT8E4M3FN: "fp8",
    }
    known = tensor_types(model)
    found = {name: words.get(number, "fp32") for name, number in known.items()}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and known.get(node.input[0]) in words:
            found[node.output[0]] = words[known[node.input[0]]]
    return found


def _count(node: Any, given: Sequence[Shape], made: Shape) -> int:
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(given[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(given[0]) * math.prod(given[1][1:])
    if node.op_type in RECURRENT:  # (steps, batch, inputs); weights (directions, gates * hidden, inputs or hidden)
        return given[0][0] * given[0][1] * (math.prod(given[1]) + math.prod(given[2]))
    if node.op_type == "Einsum":
        return _einsum(node, given)
    swapped = node.op_type == "Gemm" and any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(made) * given[0][0 if swapped else -1]


def _einsum(node: Any, given: Sequence[Shape]) -> int:
    """The product of all its sizes, each letter once."""
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    sizes: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(terms, given, strict=False):
        front, dots, back = term.partition("...")
        around = len(front) + len(back)
        letters = [*front, *(f".{n}" for n in range(len(shape) - around, 0, -1) if dots), *back]
        for letter, size in zip(letters, shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return int(np.prod(list(sizes.values()), dtype=np.int64))
