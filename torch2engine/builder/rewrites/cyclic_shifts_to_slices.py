"""An ONNX model whose cyclic shifts are slices, for a builder that reads slices several elements at a time.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it concerns one operator.
PyTorch exports `torch.roll` as a Gather with a list of places. For all that TensorRT-RTX 1.6.1 knows, they may be in
any order: its kernels then read element by element. Two slices and their Concat are the same, and take a
quarter of the threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.builder.rewrites.node_replacement import replace_node
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["slice_cyclic_shifts"]

_FIRST_OPSET = 10  # before it, Slice has no inputs for its bounds


def slice_cyclic_shifts(model: Any, folder: Path) -> Any | None:
    """Write each Gather that shifts an axis cyclically as two slices, one behind the other.

    Args:
        model: a ModelProto.
        folder: where its external data lie.

    Returns:
        another ModelProto; None where nothing is shifted so.
    """
    if "Gather" not in operators_of(model):
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    sliced = ir.from_proto(model)
    ir.external_data.set_base_dir(sliced.graph, folder)
    if sliced.opset_imports.get("", 0) < _FIRST_OPSET:
        return None
    shifts: list[tuple[Any, int, int]] = [
        (node, places[0], len(places)) for node in sliced.graph.all_nodes() if (places := _shifted_places(node))
    ]
    for node, start, size in shifts:
        _write_slices(node, start, size)
    return ir.to_proto(sliced) if shifts else None


def _shifted_places(node: Any) -> list[int]:
    """The places that a Gather reads, if they are those from some place on, then those before it; else none."""
    if node.domain not in ("", "ai.onnx") or node.op_type != "Gather":
        return []
    index = node.inputs[1]
    if index is None or index.const_value is None or index.is_graph_input() or len(index.const_value.shape) != 1:
        return []
    places = index.const_value.numpy().tolist()
    start = places[0] if places else 0
    is_shift = 0 < start < len(places) and places == np.roll(np.arange(len(places)), -start).tolist()
    return places if is_shift else []


def _write_slices(node: Any, start: int, size: int) -> None:
    """Put `concat(data[start:size], data[:start])` in the node's place. The axis may be longer than `size`."""
    import onnx_ir as ir
    from onnx_ir import tape

    axis = node.attributes.get_int("axis", 0)
    record = tape.Tape()

    def cut(first: int, end: int) -> Any:
        bounds = [
            # As a tensor: numbers as attributes came with opset 12, and files from elsewhere may be older.
            record.op("Constant", [], attributes={"value": ir.tensor([number], dtype=ir.DataType.INT64)})
            for number in (first, end, axis)
        ]
        return record.op("Slice", [node.inputs[0], *bounds])

    shifted = record.op("Concat", [cut(start, size), cut(0, start)], attributes={"axis": axis})
    graph = node.graph
    index = node.inputs[1]
    replace_node(node, record.nodes, shifted, "shift")
    if not index.uses() and index.name in graph.initializers:
        graph.initializers.pop(index.name)
