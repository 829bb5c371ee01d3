"""An ONNX model whose attention has batch and heads in one dimension, for a builder that copies less around it then.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it concerns attention of fixed
sizes alone, in whatever form `attention_to_one_node` leaves it, and engines whose weights stay: a refit would ask the
module for the scale, which becomes a constant of the graph.

TensorRT-RTX 1.6.1 makes the same kernel of an Attention node, and of products in four dimensions or in three. Around
the node it copies the answer. In four dimensions it cuts the product that queries, keys and values come from into
three, and adds the bias to each by a kernel of its own. In three dimensions it does neither. Products become one kernel
where heads have been moved behind linear layers; of one head, or behind other operators, only the node surely does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.builder.rewrites.attention_to_one_node import Attention, read_attention
from torch2engine.builder.rewrites.node_reading import is_operator, opset_of, read_model, write_model
from torch2engine.builder.rewrites.node_replacement import replace_node
from torch2engine.onnx_graph.tensor_types import cast_element_types, mentions_type
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["fold_heads"]

_NODE = "Attention"
_SOFTMAX = "Softmax"
_READ_ATTRIBUTES = {"scale"}  # of the node; with any other it is computed in another way
_READ_INPUTS = (3, 4)
_FIRST_OPSET = 13  # before it, Softmax takes several axes for one, and Slice and Squeeze have other inputs
_SMALLEST_SCALE = 2.0**-14  # below it, float16 has fewer digits
_LARGEST_SCALE = 2.0**15
_LAYOUT = ("Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Identity")
_LINEAR = ("MatMul", "Gemm")


@dataclass(frozen=True)
class _Sizes:
    """The fixed sizes of an attention.

    Args:
        heads: of queries, keys and values.
        queries, keys: how many there are.
        entries: of a head.
    """

    heads: int
    queries: int
    keys: int
    entries: int


def fold_heads(model: Any, folder: Path) -> Any | None:
    """Write attention whose sizes are fixed, but for the batch, as products in three dimensions.

    These are Attention nodes in float16 and bfloat16, and attention with a constant bias for each head. No weight is
    read or renamed.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where there is no such attention, and for an opset below 13.
    """
    operators = operators_of(model)
    if operators.isdisjoint((_NODE, _SOFTMAX)) or not mentions_type(model, cast_element_types()):
        return None
    if opset_of(model) < _FIRST_OPSET:
        return None
    from onnx_ir.passes import common  # only here: it takes long to load

    folded = read_model(model, folder)
    changes = [_fold(node) for node in list(folded.graph)]
    if not any(changes):
        return None
    common.RemoveUnusedNodesPass()(folded)
    return write_model(folded)


def _fold(node: Any) -> bool:
    """Fold the attention of a node, if it is an Attention or the softmax of one; tell whether anything changed."""
    if is_operator(node, _NODE):
        return _fold_node(node)
    attention = read_attention(node) if is_operator(node, _SOFTMAX) else ""
    if isinstance(attention, str) or not attention.is_fused_as_it_is:
        return False
    return _fold_products(attention)


def _fold_node(node: Any) -> bool:
    """Put products in the place of an Attention node; False for one of another kind, or whose sizes are not fixed."""
    is_plain = set(node.attributes) <= _READ_ATTRIBUTES and len(node.outputs) == 1
    if not is_plain or len(node.inputs) not in _READ_INPUTS or None in node.inputs:
        return False
    query, key, value, *masks = node.inputs
    sizes = _fixed_sizes(query, key, value)
    if sizes is None or any(mask.dtype != query.dtype for mask in masks):
        return False
    scale = node.attributes.get_float("scale", sizes.entries**-0.5)
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
        return False
    writer = _Writer(sizes)
    weights = writer.scores(query, key, scale)
    for mask in masks:
        weights = writer.op("Add", weights, mask)
    weights = writer.op(_SOFTMAX, weights, axis=-1)
    writer.replace(node, writer.answer(weights, value))
    writer.products[-1].name = node.name  # reports look for the last product by the node's name
    return True


def _fold_products(attention: Attention) -> bool:
    """Put products in three dimensions in the place of those in four; what stands between them stays.

    Returns:
        False, with nothing changed, where the sizes are not fixed.
    """
    key = attention.key.source
    last = attention.result.producer()
    sizes = _fixed_sizes(attention.query, key, attention.value, attention.key.order)
    if sizes is None or not _SMALLEST_SCALE <= attention.scale <= _LARGEST_SCALE:
        return False
    writer = _Writer(sizes)
    if attention.key.order != [0, 1, 2, 3]:
        key = writer.op("Transpose", key, perm=attention.key.order)
    scores = writer.scores(attention.query, key, attention.scale)
    writer.replace(attention.scores.producer(), scores)
    writer.products[-1].name = attention.product.name
    writer = _Writer(sizes)
    writer.replace(last, writer.answer(last.inputs[0], attention.value))
    writer.products[-1].name = last.name
    return True


def _fixed_sizes(query: Any, key: Any, value: Any, key_order: Sequence[int] = (0, 1, 2, 3)) -> _Sizes | None:
    """The sizes of an attention whose products surely become one kernel; None for any other one.

    All but the batch must be known and fit together.
    """
    operands = (query, key, value)
    if any(one.dtype not in cast_element_types() or one.shape is None or len(one.shape) != 4 for one in operands):
        return None
    key_shape = [key.shape[axis] for axis in key_order]
    _, heads, queries, entries = query.shape
    keys = key_shape[2]
    if not all(isinstance(size, int) for size in (heads, queries, keys, entries)):
        return None
    fits = key_shape[1:] == [heads, keys, entries] == list(value.shape)[1:]
    if not fits or heads == 1 or not all(_are_moved_heads(one) for one in operands):
        return None
    return _Sizes(heads, queries, keys, entries)


def _are_moved_heads(value: Any) -> bool:
    """Whether a value is the result of a linear layer, with its heads moved by a Transpose."""
    node = value.producer()
    is_moved = False
    while is_operator(node, *_LAYOUT):
        is_moved = is_moved or node.op_type == "Transpose"
        node = node.inputs[0].producer()
    summands = node.inputs if is_operator(node, "Add") else ()
    is_linear = is_operator(node, *_LINEAR) or any(is_operator(summand.producer(), *_LINEAR) for summand in summands)
    return is_moved and is_linear


class _Writer:
    """Writes the nodes of an attention.

    Args:
        sizes: of the attention.
    """

    def __init__(self, sizes: _Sizes) -> None:
        from onnx_ir import tape

        self.sizes = sizes
        self.products: list[Any] = []
        self._record: Any = tape.Tape()

    def op(self, operator: str, *inputs: Any, **attributes: Any) -> Any:
        """Write a node, and give its result."""
        result = self._record.op(operator, inputs, attributes=attributes)
        if operator == "MatMul":
            self.products.append(result.producer())
        return result

    def scores(self, query: Any, key: Any, scale: float) -> Any:
        """[batch, heads, queries, keys] of a query and a key in four dimensions. The factor is in their type."""
        import onnx_ir as ir

        sizes = self.sizes
        rows = self._reshape(query, -1, sizes.queries, sizes.entries)
        columns = self.op("Transpose", self._reshape(key, -1, sizes.keys, sizes.entries), perm=[0, 2, 1])
        if scale != 1:
            factor = ir.tensor(np.asarray(scale, query.dtype.numpy()), dtype=query.dtype)
            rows = self.op("Mul", rows, self.op("Constant", value=factor))
        return self._reshape(self.op("MatMul", rows, columns), -1, sizes.heads, sizes.queries, sizes.keys)

    def answer(self, weights: Any, value: Any) -> Any:
        """[batch, heads, queries, entries] of weights and values in four dimensions."""
        sizes = self.sizes
        rows = self._reshape(weights, -1, sizes.queries, sizes.keys)
        product = self.op("MatMul", rows, self._reshape(value, -1, sizes.keys, sizes.entries))
        return self._reshape(product, -1, sizes.heads, sizes.queries, sizes.entries)

    def replace(self, node: Any, result: Any) -> None:
        """Put what has been written in a node's place."""
        replace_node(node, self._record.nodes, result, "fold")

    def _reshape(self, value: Any, *shape: int) -> Any:
        import onnx_ir as ir

        sizes = self.op("Constant", value=ir.tensor(shape, dtype=ir.DataType.INT64))
        return self.op("Reshape", value, sizes)
