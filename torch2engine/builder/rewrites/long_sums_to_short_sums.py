"""An ONNX model whose float32 products sum in short pieces, for a builder that rounds long sums badly.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it is one fault of one flavour.
On an H200, TensorRT-RTX 1.6.1 multiplies float32 with a relative error of 7e-9 for each term of a sum: 3e-5 for 4608
terms, where cuDNN has 1e-6. The sum of shorter sums keeps the error of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.node_replacement import replace_node
from torch2engine.onnx_graph.walk import walk_graphs

__all__ = ["LONGEST_SUM", "split_long_sums"]

LONGEST_SUM = 1536
_FIRST_OPSET = 10  # before it, Slice has no inputs for its bounds


@dataclass(frozen=True)
class _WeightedSum:
    """The sum of products with a constant weight that a node computes.

    Args:
        data_axis: the axis of the node's first input that is summed over.
        weight_axis: the axis of its second input that is summed over.
        size: the size of both.
        terms: how many products each element of the result sums: size, times the window of a convolution.
    """

    data_axis: int
    weight_axis: int
    size: int
    terms: int

    def ranges(self) -> list[tuple[int, int]]:
        """The (start, end) of each piece of the summed axis, of at most `LONGEST_SUM` terms where it can be cut so."""
        longest = max(LONGEST_SUM * self.size // self.terms, 1)
        pieces = math.ceil(self.size / longest)
        bounds = [self.size * index // pieces for index in range(pieces + 1)]
        return list(itertools.pairwise(bounds))


def split_long_sums(model: Any, folder: Path) -> Any | None:
    """Cut convolutions and matrix products with constant float32 weights into sums of shorter ones.

    Grouped and transposed convolutions and products of two computed tensors stay as they are. Weights are not read;
    what cuts them is a Slice, which TensorRT computes when it builds.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where every sum is short, and for an opset below 10.
    """
    del folder
    if not _has_long_weight(model):
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    cut = ir.from_proto(model)
    if cut.opset_imports.get("", 0) < _FIRST_OPSET:
        return None
    long_sums: list[tuple[Any, _WeightedSum]] = [
        (node, long_sum) for node in cut.graph.all_nodes() if (long_sum := _long_sum(node))
    ]
    for node, long_sum in long_sums:
        _split(node, long_sum)
    return ir.to_proto(cut) if long_sums else None


def _has_long_weight(model: Any) -> bool:
    """Tell whether any weight is large enough for a long sum, whatever reads it."""
    from onnx import TensorProto

    weights = [tensor for graph in walk_graphs(model.graph) for tensor in graph.initializer]
    return any(
        max(*tensor.dims, math.prod(tensor.dims[1:])) > LONGEST_SUM
        for tensor in weights
        if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )


def _long_sum(node: Any) -> _WeightedSum | None:
    """Read a node that sums more than `LONGEST_SUM` products; None for every other node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _READERS:
        return None
    shape = _float_constant(node.inputs[1])
    weighted_sum = None if shape is None else _READERS[node.op_type](node, shape)
    if weighted_sum is None or weighted_sum.terms <= LONGEST_SUM or weighted_sum.size <= 1:
        return None
    return weighted_sum


def _float_constant(value: Any) -> Sequence[int] | None:
    """The shape of a float32 initializer that no caller can replace; None for every other tensor."""
    import onnx_ir as ir

    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return tuple(value.const_value.shape) if value.const_value.dtype == ir.DataType.FLOAT else None


def _read_convolution(node: Any, weight: Sequence[int]) -> _WeightedSum | None:
    if node.attributes.get_int("group", 1) != 1:
        return None
    return _WeightedSum(data_axis=1, weight_axis=1, size=weight[1], terms=math.prod(weight[1:]))


def _read_matrix_product(node: Any, weight: Sequence[int]) -> _WeightedSum | None:
    del node
    if len(weight) < 2:
        return None
    return _WeightedSum(data_axis=-1, weight_axis=-2, size=weight[-2], terms=weight[-2])


def _read_gemm(node: Any, weight: Sequence[int]) -> _WeightedSum:
    data_axis = 0 if node.attributes.get_int("transA", 0) else 1
    weight_axis = 1 if node.attributes.get_int("transB", 0) else 0
    return _WeightedSum(data_axis, weight_axis, size=weight[weight_axis], terms=weight[weight_axis])


# {operator: what reads its sum from the node and the shape of its weight}
_READERS = {"Conv": _read_convolution, "MatMul": _read_matrix_product, "Gemm": _read_gemm}


def _split(node: Any, long_sum: _WeightedSum) -> None:
    """Put the sum of the pieces in a node's place; the first piece adds what the node adds, such as a bias."""
    from onnx_ir import tape

    record = tape.Tape()
    total: Any = None
    for index, (start, end) in enumerate(long_sum.ranges()):
        data = _slice(record, node.inputs[0], long_sum.data_axis, start, end)
        weight = _slice(record, node.inputs[1], long_sum.weight_axis, start, end)
        added: list[Any] = list(node.inputs[2:]) if index == 0 else []
        piece = record.op(node.op_type, [data, weight, *added], attributes=node.attributes)
        total = piece if total is None else record.op("Add", [total, piece])
    replace_node(node, record.nodes, total, "sum")


def _slice(record: Any, value: Any, axis: int, start: int, end: int) -> Any:
    import onnx_ir as ir

    def constant(number: int) -> Any:
        # As a tensor: numbers as attributes came with opset 12, and files from elsewhere may be older.
        return record.op("Constant", [], attributes={"value": ir.tensor([number], dtype=ir.DataType.INT64)})

    return record.op("Slice", [value, constant(start), constant(end), constant(axis)])
