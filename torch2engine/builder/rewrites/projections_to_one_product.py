"""An ONNX model whose queries, keys and values come from one product, for a builder that adds their biases apart.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because the weights of the product
follow from the file's, so that it is for engines whose weights stay.

TensorRT-RTX 1.6.1 computes three linear layers of one tensor as one product, and then adds each bias and moves the
heads by a kernel of its own. Of one linear layer it makes one kernel with the bias, and another that moves all heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.node_reading import is_operator, only_user, read_model, write_model
from torch2engine.onnx_graph.tensor_types import cast_element_types, mentions_type
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["merge_projections"]

_OPERATORS = ("MatMul", "Reshape", "Transpose")
_HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Projection:
    """A linear layer whose result becomes heads: [batch, length, width] to [batch, heads, length, entries].

    Args:
        source: the tensor that it projects.
        product: its MatMul.
        weight: [width of the source, heads * entries].
        bias: [heads * entries]; None if nothing is added.
        heads, entries: the sizes of its result.
        results: the nodes that swap length and heads.
    """

    source: Any
    product: Any
    weight: Any
    bias: Any | None
    heads: int
    entries: int
    results: tuple[Any, ...]

    @property
    def group(self) -> tuple[Any, int, bool]:
        """What projections have in common that one product can compute."""
        return self.source, self.entries, self.bias is None


def merge_projections(model: Any, folder: Path) -> Any | None:
    """Compute the heads of folded attention that come from one tensor by one product, and cut them apart afterwards.

    Weights are not read; what joins them is a Concat, which TensorRT computes when it builds.

    Args:
        model: a ModelProto, with the attention as `fold_heads` leaves it.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where no two projections can be merged.
    """
    if not operators_of(model).issuperset(_OPERATORS) or not mentions_type(model, cast_element_types()):
        return None
    merged = read_model(model, folder)
    groups: dict[Any, list[_Projection]] = {}
    for node in merged.graph:
        projection = _read_projection(node)
        if projection is not None:
            groups.setdefault(projection.group, []).append(projection)
    several = [group for group in groups.values() if len(group) > 1]
    for group in several:
        _merge(group)
    return write_model(merged) if several else None


def _read_projection(product: Any) -> _Projection | None:
    """Read the linear layer that begins with a node, and its heads; None for every other node."""
    if not is_operator(product, "MatMul") or product.outputs[0].dtype not in cast_element_types():
        return None
    source, weight = product.inputs
    if not _is_weight(weight, 2) or source.shape is None or len(source.shape) != 3:
        return None
    result = product.outputs[0]
    bias = None
    added = only_user(result)
    if is_operator(added, "Add"):
        bias = next((value for value in added.inputs if _is_weight(value, 1)), None)
        result = added.outputs[0]
        if bias is None:
            return None
    heads = only_user(result)
    shape = heads.outputs[0].shape if is_operator(heads, "Reshape") and heads.inputs[0] is result else None
    if shape is None or len(shape) != 4 or not _is_split(source.shape, shape, weight.shape[1]):
        return None
    users = _users(heads.outputs[0])
    if not users or not all(_swaps_heads(user) and _feeds_folded_attention(user) for user in users):
        return None
    if bias is not None and bias.shape[0] != weight.shape[1]:
        return None
    return _Projection(source, product, weight, bias, shape[2], shape[3], tuple(users))


def _is_split(source: Sequence[Any], heads: Sequence[Any], width: int) -> bool:
    """Whether a Reshape surely parts the last axis alone, into heads."""
    is_known = None not in [getattr(size, "value", size) for size in source[:2]]
    fixed = isinstance(heads[2], int) and isinstance(heads[3], int)
    return is_known and fixed and list(source)[:2] == list(heads)[:2] and heads[2] * heads[3] == width


def _swaps_heads(node: Any) -> bool:
    return is_operator(node, "Transpose") and list(node.attributes.get_ints("perm", [])) == _HEADS_FIRST


def _feeds_folded_attention(node: Any) -> bool:
    """Whether all that reads a node's result folds batch and heads: from four dimensions to three."""
    readers = _users(node.outputs[0])
    shapes = [reader.outputs[0].shape for reader in readers if is_operator(reader, "Reshape")]
    return bool(readers) and len(shapes) == len(readers) and all(shape is None or len(shape) == 3 for shape in shapes)


def _merge(group: Sequence[_Projection]) -> None:
    """Put one product before the first of a group, and slices of its heads in the place of all results."""
    import onnx_ir as ir
    from onnx_ir import tape

    record: Any = tape.Tape()

    def integers(*numbers: int) -> Any:
        return record.op("Constant", [], attributes={"value": ir.tensor(numbers, dtype=ir.DataType.INT64)})

    first = group[0]
    weight = record.op("Concat", [one.weight for one in group], attributes={"axis": 1})
    product = record.op("MatMul", [first.source, weight])
    merged = product
    if first.bias is not None:
        bias = record.op("Concat", [one.bias for one in group], attributes={"axis": 0})
        merged = record.op("Add", [product, bias])
    parted = record.op("Reshape", [merged, integers(0, 0, sum(one.heads for one in group), first.entries)])
    heads = record.op("Transpose", [parted], attributes={"perm": _HEADS_FIRST})
    start = 0
    for one in group:
        end = start + one.heads
        cut = record.op("Slice", [heads, integers(start), integers(end), integers(1)])
        start = end
        cut.type = one.results[0].outputs[0].type
        cut.shape = one.results[0].outputs[0].shape
        for result in one.results:
            ir.convenience.replace_all_uses_with(result.outputs[0], cut)
    for index, node in enumerate(record.nodes):
        node.name = f"{first.product.name}/merged_{index}"
    product.producer().name = first.product.name  # reports find the layer by it
    first.product.graph.insert_before(first.product, record.nodes)
    _remove(result for one in group for result in one.results)


def _remove(nodes: Iterable[Any]) -> None:
    """Remove nodes that nobody reads, and all before them that they alone have read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        before = [value.producer() for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        waiting += [one for one in before if one is not None]


def _is_weight(value: Any, rank: int) -> bool:
    """Whether a value is an initializer of so many dimensions that no caller can replace."""
    return (
        value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and value.const_value is not None
        and len(value.const_value.shape) == rank
    )


def _users(value: Any) -> list[Any]:
    """The nodes that read a value; none if the caller gets it too."""
    return [] if value.is_graph_output() else [use.node for use in value.uses()]
