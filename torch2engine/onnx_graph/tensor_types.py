"""An ONNX model → the element type of each of its tensors, and the precision that these make it.

Enters: a ModelProto. Leaves: types by tensor name, or the word for a precision. Separate because exporters don't write
every type, so every reader of types needs ONNX's inference.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch2engine.core.precisions import CAST_PRECISIONS, DEFAULT_PRECISION, PRECISION_TYPES, PrecisionType
from torch2engine.onnx_graph.walk import walk_graphs, walk_model_nodes, walk_model_tensors

__all__ = [
    "DTYPE_ATTRIBUTES",
    "cast_element_types",
    "element_type",
    "float32_tensors",
    "graph_precision",
    "mentions_type",
    "tensor_types",
    "without_weight_values",
]

# A constant of this size may be a shape, whose value the inference needs.
_SMALL_BYTES = 1024
DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
"""Attributes of nodes whose value is an element type."""
# These operators compute nothing in the type of their results.
_CONVERSIONS = ("Cast", "Constant", "DequantizeLinear", "Identity", "QuantizeLinear")


def without_weight_values(model: Any) -> Any:
    """Copy the main graph without the values of large weights, because protobuf can't serialise 2 GiB."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for part in ("node", "input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        # The first question copies nothing: `raw_data` is a copy of the values.
        is_small = tensor.ByteSize() <= 2 * _SMALL_BYTES and len(tensor.raw_data) <= _SMALL_BYTES
        copied = copy.graph.initializer.add()
        copied.CopyFrom(tensor if is_small else onnx.TensorProto(name=tensor.name, dims=tensor.dims))
        copied.data_type = tensor.data_type
    copy.graph.name = "without_weight_values"
    return copy


def tensor_types(model: Any) -> dict[str, int]:
    """Find the element type of every tensor of the main graph: name -> onnx.TensorProto.DataType."""
    import onnx

    onnx_untyped: Any = onnx  # the package's own annotations lack shape_inference
    graph = onnx_untyped.shape_inference.infer_shapes(without_weight_values(model)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def mentions_type(model: Any, element_types: Collection[int]) -> bool:
    """Tell, without inference, whether any tensor of a model may have one of these element types.

    A tensor of a type begins at an input, at a weight or constant, or at a node that names the type. Exporters may
    also write the types of other tensors into the file.
    """
    values = [value for graph in walk_graphs(model.graph) for value in (*graph.input, *graph.value_info, *graph.output)]
    return (
        any(value.type.tensor_type.elem_type in element_types for value in values)
        or any(tensor.data_type in element_types for tensor in walk_model_tensors(model))
        or any(
            attribute.name in DTYPE_ATTRIBUTES and attribute.i in element_types
            for node in walk_model_nodes(model)
            for attribute in node.attribute
        )
    )


def float32_tensors(model: Any) -> set[str]:
    """Find the names of all float32 tensors, weights included."""
    from onnx import TensorProto

    return {name for name, number in tensor_types(model).items() if number == TensorProto.FLOAT}


def graph_precision(model: Any) -> str:
    """Find the precision of a graph from anywhere: the one with the loosest tolerance that anything is computed in.

    A weight or an input that is only stored in a low type, and cast before it is used, doesn't count.

    Returns:
        the default one for a graph in which no low type is computed with; the graph does not show TF32.
    """
    types = tensor_types(model)
    computed: set[int | None] = set()
    dequantized: set[int | None] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            dequantized.add(types.get(node.input[0]))
        if node.op_type not in _CONVERSIONS:
            computed.update(types.get(name) for name in node.output)
    used = {"cast": computed, "quantize": dequantized}
    present = [row for row in PRECISION_TYPES.values() if used.get(row.made_by, set()) & _element_types(row)]
    return max(present, key=lambda row: row.rel_l2).name if present else DEFAULT_PRECISION


def _element_types(row: PrecisionType) -> set[int]:
    from onnx import TensorProto

    return {TensorProto.DataType.Value(name) for name in (row.onnx_type, *row.other_onnx_types)}


def element_type(precision: str) -> int:
    """Give ONNX's number for the type of a precision, e.g. "fp16"."""
    from onnx import TensorProto

    return TensorProto.DataType.Value(PRECISION_TYPES[precision].onnx_type)


def cast_element_types() -> frozenset[int]:
    """Give ONNX's numbers for the types that whole graphs are cast to, float16 and bfloat16."""
    return frozenset(element_type(precision) for precision in CAST_PRECISIONS)
