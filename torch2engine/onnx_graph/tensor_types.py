"""An ONNX model → the element type of each of its tensors.

Enters: a ModelProto. Leaves: types by tensor name. Separate because exporters don't write every type, so every reader
of types needs ONNX's inference.
"""

from __future__ import annotations

from typing import Any

from torch2engine.core.precisions import CAST_PRECISIONS, PRECISION_TYPES

__all__ = ["cast_element_types", "element_type", "float32_tensors", "tensor_types", "without_weight_values"]

# A constant of this size may be a shape, whose value the inference needs.
_SMALL_BYTES = 1024


def without_weight_values(model: Any) -> Any:
    """Copy the main graph without the values of large weights, because protobuf can't serialise 2 GiB."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for part in ("node", "input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        is_small = len(tensor.raw_data) <= _SMALL_BYTES
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


def float32_tensors(model: Any) -> set[str]:
    """Find the names of all float32 tensors, weights included."""
    from onnx import TensorProto

    return {name for name, number in tensor_types(model).items() if number == TensorProto.FLOAT}


def element_type(precision: str) -> int:
    """Give ONNX's number for the type of a precision, e.g. "fp16"."""
    from onnx import TensorProto

    return TensorProto.DataType.Value(PRECISION_TYPES[precision].onnx_type)


def cast_element_types() -> frozenset[int]:
    """Give ONNX's numbers for the types that whole graphs are cast to, float16 and bfloat16."""
    return frozenset(element_type(precision) for precision in CAST_PRECISIONS)
