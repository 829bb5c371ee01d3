"""An ONNX model and inputs → multiply-adds of each node, and the type that they are computed in.

Enters: a float32, typed or quantised model. Leaves: counts at the inputs' sizes. Separate because arithmetic, not the
number of nodes, says how much is low. A network spends its time in convolutions and matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.precision_report import RECURRENT, MultiplyAddNode
from torch2engine.core.precisions import DEFAULT_PRECISION, LOW_PRECISIONS, PRECISION_TYPES
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.onnx_graph.tensor_types import tensor_types, without_weight_values

__all__ = ["count_in_model", "count_multiply_adds", "observed_shapes"]

_SHAPE_PREFIX = "torch2engine.shape/"
_MULTIPLYING_OPS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", *RECURRENT)

Shape = Sequence[int]


def count_multiply_adds(source: Path, inputs: Mapping[str, NDArray[Any]]) -> tuple[MultiplyAddNode, ...]:
    """Count the multiply-adds of every convolution, matrix product and recurrent layer of the main graph, in its order.

    Args:
        source: the model.
        inputs: arrays by name, float32 where the model takes float16 or bfloat16; their sizes decide the counts.
    """
    shapes = {name: array.shape for name, array in inputs.items()}
    return count_in_model(load_model(source), shapes, lambda names: observed_shapes(source, names, inputs))


def count_in_model(
    model: Any, input_shapes: Mapping[str, Shape], observe: Callable[[Sequence[str]], Mapping[str, Shape]] | None = None
) -> tuple[MultiplyAddNode, ...]:
    """Count as `count_multiply_adds`, in a model that was read already.

    Args:
        model: a ModelProto, with or without weights.
        input_shapes: by name.
        observe: gives the shapes of tensors that depend on values; None counts 0 there.
    """
    nodes = [node for node in model.graph.node if node.op_type in _MULTIPLYING_OPS]
    names = sorted({name for node in nodes for name in (*node.input, node.output[0]) if name})
    shapes: dict[str, Shape] = {**_inferred_shapes(model, input_shapes)}
    unknown = [name for name in names if name not in shapes]
    if unknown and observe is not None:
        shapes |= observe(unknown)
        unknown = []
    module_of_node = node_modules(model)
    precision_of_tensor = _tensor_precisions(model)
    return tuple(
        MultiplyAddNode(
            name=node.name,
            op=node.op_type,
            module=module_of_node[node.name],
            precision=precision_of_tensor.get(node.input[0], DEFAULT_PRECISION),
            multiply_adds=0
            if not {*node.input, node.output[0]}.isdisjoint(unknown)
            else _count(node, [shapes.get(name, ()) for name in node.input], shapes.get(node.output[0], ())),
        )
        for node in nodes
    )


def _inferred_shapes(model: Any, input_shapes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """Infer shapes from those of the inputs, by ONNX, as far as they don't depend on values."""
    from onnx import helper, shape_inference

    small = without_weight_values(model)
    graph = small.graph
    del graph.value_info[:]  # these shapes, and the outputs', are of other sizes
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in graph.input:
        element_type = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, input_shapes[value.name]))
    inferred = shape_inference.infer_shapes(small, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def observed_shapes(
    source: Path, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Run the model to see shapes that depend on values."""
    from onnx import TensorProto, helper

    with scratch_folder() as folder:
        path = folder / "model.onnx"
        model = load_model(source)
        del model.graph.output[:]
        for name in names:
            output = _SHAPE_PREFIX + name
            model.graph.node.append(helper.make_node("Shape", [name], [output]))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
        save_model(model, path)
        answers = OrtSession(path)(inputs)
    return {name: tuple(int(size) for size in answers[_SHAPE_PREFIX + name]) for name in names}


def _tensor_precisions(model: Any) -> dict[str, str]:
    """Find, for each tensor, the precision of a convolution or matrix product with it as first input."""
    from onnx import TensorProto

    precision_of_type: dict[int, str] = {}
    for precision in LOW_PRECISIONS:
        row = PRECISION_TYPES[precision]
        for onnx_type in (row.onnx_type, *row.other_onnx_types):
            precision_of_type[TensorProto.DataType.Value(onnx_type)] = precision
    types = tensor_types(model)
    precisions = {name: precision_of_type.get(element_type, DEFAULT_PRECISION) for name, element_type in types.items()}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) in precision_of_type:
            precisions[node.output[0]] = precision_of_type[types[node.input[0]]]
    return precisions


def _count(node: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Count a node's multiply-adds, given the shapes of its inputs and of its first output."""
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(inputs[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type in RECURRENT:  # (steps, batch, inputs); weights (directions, gates * hidden, inputs or hidden)
        return inputs[0][0] * inputs[0][1] * (math.prod(inputs[1]) + math.prod(inputs[2]))
    if node.op_type == "Einsum":
        return _count_einsum(node, inputs)
    is_transposed = node.op_type == "Gemm" and any(
        attribute.name == "transA" and attribute.i for attribute in node.attribute
    )
    return math.prod(output) * inputs[0][0 if is_transposed else -1]


def _count_einsum(node: Any, inputs: Sequence[Shape]) -> int:
    """Multiply the sizes of all letters of the equation, each counted once."""
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    size_of_letter: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(terms, inputs, strict=False):
        front, dots, back = term.partition("...")
        named = len(front) + len(back)
        letters = [*front, *(f".{n}" for n in range(len(shape) - named, 0, -1) if dots), *back]
        for letter, size in zip(letters, shape, strict=False):
            size_of_letter[letter] = max(size, size_of_letter.get(letter, 1))
    return int(np.prod(list(size_of_letter.values()), dtype=np.int64))
