"""An ONNX model whose group norms of one group are written out, for a builder that takes each channel for a group.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it is one fault of one flavour.
On an H200, TensorRT-RTX 1.6.1 computes GroupNormalization of one group as an instance norm: the answers of a ConvTasNet
are 21 % off there. With more groups it is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.node_replacement import replace_node, replace_nodes_of

__all__ = ["write_out_single_group_norms"]


def write_out_single_group_norms(model: Any, folder: Path) -> Any | None:
    """Write each group norm of one group as means, differences and a root.

    No weight is read or renamed, so that a refit finds all of them.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where no group norm has one group.
    """
    del folder
    return replace_nodes_of(model, "GroupNormalization", _write_out_if_single)


def _write_out_if_single(node: Any) -> bool:
    """Write a norm out if it has one group."""
    has_one_group = node.attributes.get_int("num_groups") == 1
    if has_one_group:
        _write_out(node)
    return has_one_group


def _write_out(node: Any) -> None:
    """Put the norm's definition in its place: in the dtype of its stash_type, scale and bias in the input's."""
    import onnx_ir as ir
    from onnx_ir import tape

    x, scale, bias = node.inputs
    record = tape.Tape()

    def integers(*numbers: int) -> Any:
        return record.op("Constant", [], attributes={"value": ir.tensor(numbers, dtype=ir.DataType.INT64)})

    dtype = ir.DataType(node.attributes.get_int("stash_type", ir.DataType.FLOAT.value))
    epsilon = ir.tensor(node.attributes.get_float("epsilon", 1e-5), dtype=dtype)
    flat = record.op("Reshape", [x, integers(0, 0, -1)])  # [batch, channels, all positions]
    wide = record.op("Cast", [flat], attributes={"to": dtype.value})
    centered = record.op("Sub", [wide, record.op("ReduceMean", [wide, integers(1, 2)])])
    variance = record.op("ReduceMean", [record.op("Mul", [centered, centered]), integers(1, 2)])
    smallest = record.op("Constant", [], attributes={"value": epsilon})
    deviation = record.op("Sqrt", [record.op("Add", [variance, smallest])])
    normal = record.op("CastLike", [record.op("Div", [centered, deviation]), x])
    scaled = record.op("Mul", [normal, record.op("Unsqueeze", [scale, integers(1)])])
    shifted = record.op("Add", [scaled, record.op("Unsqueeze", [bias, integers(1)])])
    result = record.op("Reshape", [shifted, record.op("Shape", [x])])
    replace_node(node, record.nodes, result, "one_group")
