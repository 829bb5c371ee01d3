"""An ONNX model whose bytes are 32-bit integers inside, for builders that have bytes as inputs and outputs only.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it is about one type of
elements. TensorRT can cast an image of uint8 and nothing else: it has no transpose, no slice and no comparison of it.
ONNX Runtime has all of them, so the file itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch2engine.onnx_graph.tensor_types import mentions_type, tensor_types

__all__ = ["widen_bytes"]

_BORDER = ("Cast", "Identity")
# Operators that give the same number for a byte and for the integer of its value.
_EXACT = frozenset(
    """
    ArgMax ArgMin Cast Clip Concat Constant ConstantOfShape DepthToSpace Div Equal Expand Flatten Gather GatherElements
    GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Pad ReduceMax ReduceMin Reshape
    ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905  # a list has a line for each name
)
_WRAPPING = frozenset(("Add", "Mul", "Sub"))
_BYTE_VALUES = 256


def widen_bytes(model: Any, folder: Path) -> Any | None:
    """Compute with int32 wherever the model computes with uint8; inputs and outputs keep their type.

    Sums, products and casts of integers wrap around as bytes do.

    Args:
        model: a ModelProto.
        folder: where its external data lie.

    Returns:
        another ModelProto; None where no byte is computed with, where an operator of bytes is none of those here, and
        where an output is an input or another output at once, since each of them must keep its name.
    """
    from onnx import TensorProto

    if not mentions_type(model, (TensorProto.UINT8,)):
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    wide = ir.from_proto(model)
    _complete_types(wide.graph, tensor_types(model))
    nodes = [node for node in wide.graph.all_nodes() if any(map(_is_bytes, (*node.inputs, *node.outputs)))]
    if all(map(_is_border, nodes)) or not all(map(_is_known, nodes)) or _has_subgraphs(wide.graph):
        return None
    if not _has_outputs_of_their_own(wide.graph):
        return None
    ir.external_data.set_base_dir(wide.graph, folder)
    constants = [value for value in wide.graph.initializers.values() if _is_bytes(value)]
    _widen_outputs(wide.graph)
    for node in nodes:
        _widen_node(node)
    _widen_inputs(wide.graph)
    for value in constants:
        _widen_constant(wide.graph, value)
    return ir.to_proto(wide)


def _makes_bytes(node: Any) -> bool:
    import onnx_ir as ir

    if node.attributes.get_int("to", 0) == ir.DataType.UINT8:
        return True
    constant: Any = node.attributes.get("value")
    return constant is not None and constant.type == ir.AttributeType.TENSOR and _is_bytes(constant.value)


def _is_bytes(value: Any) -> bool:
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.UINT8


def _complete_types(graph: Any, types: Mapping[str, int]) -> None:
    """Give every value its type; a file need not tell it."""
    import onnx_ir as ir

    for node in graph:
        for value in node.outputs:
            if value.dtype is None and types.get(value.name):
                value.dtype = ir.DataType(types[value.name])


def _is_border(node: Any) -> bool:
    """Tell whether a node only takes an input's bytes, or makes an output's."""
    byte_values = [value for value in (*node.inputs, *node.outputs) if _is_bytes(value)]
    return node.op_type in _BORDER and all(value.is_graph_input() or value.is_graph_output() for value in byte_values)


def _is_known(node: Any) -> bool:
    is_standard = node.domain in ("", "ai.onnx")
    is_sum = node.attributes.get_string("reduction", "none") not in ("none", "max", "min")  # of a scatter
    return is_standard and not is_sum and (node.op_type in _EXACT or node.op_type in _WRAPPING)


def _has_subgraphs(graph: Any) -> bool:
    return any(node.graph is not graph for node in graph.all_nodes())


def _has_outputs_of_their_own(graph: Any) -> bool:
    names = [value.name for value in graph.outputs]
    return len(set(names)) == len(names) and not any(value.is_graph_input() for value in graph.outputs)


def _widen_node(node: Any) -> None:
    """Let a node compute with int32; its inputs are widened by their own makers."""
    import onnx_ir as ir

    if _makes_bytes(node):
        name = "to" if node.op_type == "Cast" else "value"
        constant = node.attributes[name].value
        wide = ir.DataType.INT32.value if name == "to" else ir.tensor(constant.numpy().astype("int32"))
        node.attributes.add(ir.Attr(name, node.attributes[name].type, wide))
    is_wrapping = node.op_type in _WRAPPING
    if node.op_type == "Cast":
        is_wrapping = node.inputs[0].dtype not in (ir.DataType.BOOL, ir.DataType.UINT8)
    for value in node.outputs:
        if _is_bytes(value):
            value.dtype = ir.DataType.INT32
            if is_wrapping:
                _wrap(node, value)


def _wrap(node: Any, value: Any) -> None:
    """Take a value modulo 256 for all of its readers."""
    from onnx_ir import tape

    record = tape.Tape()
    wrapped = record.op("Mod", [value, _int32(record, _BYTE_VALUES)])
    _insert(node.graph, node, record.nodes, f"{node.name}/wrapped")
    wrapped.shape = value.shape
    wrapped.type = value.type
    for reader, index in list(value.uses()):
        if reader is not record.nodes[-1]:
            reader.replace_input_with(index, wrapped)


def _int32(record: Any, number: int) -> Any:
    import onnx_ir as ir

    return record.op("Constant", [], attributes={"value": ir.tensor(number, dtype=ir.DataType.INT32)})


def _insert(graph: Any, after: Any, nodes: Sequence[Any], name: str) -> None:
    """Put new nodes behind a node, or before all where there is none."""
    for index, node in enumerate(nodes):
        node.name = f"{name}_{index}" if len(nodes) > 1 else name
    if after is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(after, nodes)


def _cast(value: Any, to: Any, name: str) -> Any:
    """A node that casts a value, in no graph yet."""
    import onnx_ir as ir

    node = ir.node("Cast", [value], {"to": to.value}, name=name)
    node.outputs[0].shape = value.shape
    node.outputs[0].dtype = to
    return node


def _widen_inputs(graph: Any) -> None:
    """Cast the inputs of bytes once; what casts one anyway takes it as it is."""
    import onnx_ir as ir

    for value in [value for value in graph.inputs if _is_bytes(value)]:
        readers = [(node, index) for node, index in value.uses() if node.op_type != "Cast"]
        if not readers:
            continue
        node = _cast(value, ir.DataType.INT32, f"{value.name}/as_int32")
        _insert(graph, None, [node], node.name)
        for reader, index in readers:
            reader.replace_input_with(index, node.outputs[0])


def _widen_outputs(graph: Any) -> None:
    """Let a cast make each output of bytes, under the output's name."""
    import onnx_ir as ir

    for position, value in enumerate(graph.outputs):
        if _is_bytes(value):
            node = _cast(value, ir.DataType.UINT8, f"{value.name}/as_bytes")
            node.outputs[0].name, value.name = value.name, f"{value.name}/as_int32"
            graph.append(node)
            graph.outputs[position] = node.outputs[0]


def _widen_constant(graph: Any, value: Any) -> None:
    """Put a constant of int32 in the place of one of bytes."""
    import onnx_ir as ir

    wide = ir.Value(name=f"{value.name}/as_int32", const_value=ir.tensor(value.const_value.numpy().astype("int32")))
    wide.shape = value.shape
    wide.dtype = ir.DataType.INT32
    graph.register_initializer(wide)
    for reader, index in list(value.uses()):
        reader.replace_input_with(index, wide)
    del graph.initializers[value.name]
