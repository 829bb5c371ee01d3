"""An ONNX model whose rows become zero behind a product instead of before it, for a builder that fuses them there.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it concerns one operator.
Queries whose keys are all masked get zeros, as in PyTorch. Before the linear layer that joins the heads, TensorRT-RTX
1.6.1 needs a kernel of its own for that. Behind its product, they cost nothing: the next kernel, which adds the bias,
does it as well. A row of zeros stays one in a product, so that the answers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.node_reading import is_operator, only_user, opset_of, read_model, write_model
from torch2engine.onnx_graph.tensor_types import cast_element_types, mentions_type
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["zero_rows_later"]

_OPERATORS = ("Where", "Transpose", "Reshape", "MatMul")
_FIRST_OPSET = 13  # before it, the axes of Squeeze are an attribute
_HEADS_LAST = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Zeroed:
    """Rows that become zero before a linear layer.

    Args:
        node: the Where.
        rows: the condition, [batch or 1, 1, queries or 1, 1].
        kept: what the Where keeps, [batch, heads, queries, entries].
        product: the MatMul with the weight of the layer.
    """

    node: Any
    rows: Any
    kept: Any
    product: Any


def zero_rows_later(model: Any, folder: Path) -> Any | None:
    """Move each choice between a row of all heads and zeros behind the product that joins the heads.

    No weight is read or renamed, so that a refit finds all of them.

    Args:
        model: a ModelProto that tells its shapes.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where there is no such choice, and for an opset below 13.
    """
    if not operators_of(model).issuperset(_OPERATORS) or not mentions_type(model, cast_element_types()):
        return None
    if opset_of(model) < _FIRST_OPSET:
        return None
    moved = read_model(model, folder)
    found = [zeroed for node in moved.graph if (zeroed := _read(node))]
    for zeroed in found:
        _move(zeroed)
    return write_model(moved) if found else None


def _read(node: Any) -> _Zeroed | None:
    """Read a Where that keeps rows of heads or makes them zero, and the product behind it; else None."""
    if not is_operator(node, "Where") or node.outputs[0].dtype not in cast_element_types():
        return None
    rows, kept, zero = node.inputs
    if not _is_zero(zero) or not _chooses_rows(rows.shape, kept.shape):
        return None
    batch, heads, queries, entries = kept.shape
    value = node.outputs[0]
    user = only_user(value)
    if is_operator(user, "Reshape") and user.outputs[0].shape == kept.shape:  # which changes nothing
        value = user.outputs[0]
        user = only_user(value)
    if not is_operator(user, "Transpose") or list(user.attributes.get_ints("perm", [])) != _HEADS_LAST:
        return None
    joined = only_user(user.outputs[0])
    shape = joined.outputs[0].shape if is_operator(joined, "Reshape") else None
    if shape is None or list(shape) != [batch, queries, heads * entries]:
        return None
    product = only_user(joined.outputs[0])
    if (
        not is_operator(product, "MatMul")
        or product.inputs[0] is not joined.outputs[0]
        or not _is_matrix(product.inputs[1])
    ):
        return None
    if product.outputs[0].is_graph_output():
        return None
    return _Zeroed(node, rows, kept, product)


def _chooses_rows(rows: Sequence[Any] | None, kept: Sequence[Any] | None) -> bool:
    """Whether a condition decides on all heads and entries of a query at once; heads and entries are fixed."""
    if rows is None or kept is None or len(rows) != 4 or len(kept) != 4:
        return False
    is_fixed = isinstance(kept[1], int) and isinstance(kept[3], int)
    is_known = None not in [getattr(kept[axis], "value", kept[axis]) for axis in (0, 2)]
    fits = rows[0] in (1, kept[0]) and rows[2] in (1, kept[2])
    return is_fixed and is_known and fits and rows[1] == 1 and rows[3] == 1


def _move(zeroed: _Zeroed) -> None:
    """Let the product read what the Where has kept, and put the Where behind it."""
    import onnx_ir as ir
    from onnx_ir import tape

    node = zeroed.node
    result = zeroed.product.outputs[0]
    record: Any = tape.Tape()
    axes = record.op("Constant", [], attributes={"value": ir.tensor([1], dtype=ir.DataType.INT64)})
    rows = record.op("Squeeze", [zeroed.rows, axes])
    chosen = record.op("Where", [rows, result, node.inputs[2]])
    chosen.type = result.type
    chosen.shape = result.shape
    for index, new in enumerate(record.nodes):
        new.name = f"{node.name}/late_{index}"
    ir.convenience.replace_all_uses_with(node.outputs[0], zeroed.kept)
    readers = [use for use in result.uses() if use.node is not chosen.producer()]
    for use in readers:
        use.node.replace_input_with(use.idx, chosen)
    zeroed.product.graph.insert_after(zeroed.product, record.nodes)
    node.graph.remove(node, safe=True)


def _is_zero(value: Any) -> bool:
    """Whether a value is one constant zero."""
    constant = None if value is None or value.is_graph_input() else value.const_value
    return constant is not None and constant.size == 1 and not constant.numpy().any()


def _is_matrix(value: Any) -> bool:
    """Whether a value is a constant weight of two dimensions."""
    constant = None if value is None or value.is_graph_input() else value.const_value
    return constant is not None and len(constant.shape) == 2
