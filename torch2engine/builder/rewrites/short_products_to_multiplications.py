"""An ONNX model whose products over a few elements are written out, for a builder that fuses them wrongly.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it is one fault of one flavour.
On an H200, TensorRT-RTX 1.6.1 fuses three steps of a suppression of boxes wrongly: the overlaps, with
`sides.prod(-1)` in them, times a mask, and the maximum over boxes. Most of 20 maxima are off, some by 4 % and some by
their size. Without the mask or the maximum they are right, and also with a Mul of the two sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.node_replacement import replace_node, replace_nodes_of

__all__ = ["LONGEST_PRODUCT", "write_out_short_products"]

LONGEST_PRODUCT = 4  # elements: boxes have two sides, and volumes three


def write_out_short_products(model: Any, folder: Path) -> Any | None:
    """Write each ReduceProd over one axis of a few elements as products of its slices.

    No weight is read or renamed, so that a refit finds all of them.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where no product is that short.
    """
    del folder
    return replace_nodes_of(model, "ReduceProd", _write_out_if_short)


def _write_out_if_short(node: Any) -> bool:
    """Put `x[0] * x[1] * …` along the axis of a product in its place, if it has one axis of few elements."""
    axes, shape = _axes(node), node.inputs[0].shape
    if len(axes) != 1 or shape is None:
        return False
    axis = axes[0] % len(shape)
    size = shape[axis]
    if not isinstance(size, int) or not 1 < size <= LONGEST_PRODUCT:
        return False
    _write_out(node, axis, size)
    return True


def _axes(node: Any) -> list[int]:
    """The axes of a reduction, as an attribute before opset 18 and as a constant since; none if they are not known."""
    import onnx_ir as ir

    if (attribute := node.attributes.get("axes")) is not None:
        return list(attribute.as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].is_graph_input():
        return []
    constant = ir.convenience.get_const_tensor(node.inputs[1])
    return [] if constant is None else constant.numpy().tolist()


def _write_out(node: Any, axis: int, size: int) -> None:
    import onnx_ir as ir
    from onnx_ir import tape

    x, record = node.inputs[0], tape.Tape()
    keeps_axis = node.attributes.get_int("keepdims", 1)

    def slice_at(place: int) -> Any:
        index = ir.tensor([place] if keeps_axis else place, dtype=ir.DataType.INT64)
        places = record.op("Constant", [], attributes={"value": index})
        return record.op("Gather", [x, places], attributes={"axis": axis})

    product = slice_at(0)
    for place in range(1, size):
        product = record.op("Mul", [product, slice_at(place)])
    replace_node(node, record.nodes, product, "product")
