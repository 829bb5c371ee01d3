"""Operators that read, compute and join the sizes of dimensions.

Enters: a node whose inputs are shapes or other small integer tensors. Leaves: the elements of its output, as far as
they can be told. Separate because sizes are followed element by element, and other tensors never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from torch2engine.onnx_graph.axis_flow.node_view import NodeView
from torch2engine.onnx_graph.axis_flow.sizes import ONE, Size, combined, product
from torch2engine.onnx_graph.axis_flow.values import Fixed, Mixes, Numbers, Place, Sizes, Value, all_fixed

__all__ = ["MOST_ELEMENTS", "SHAPE_READERS", "SIZE_RULES", "apply_size_rule"]

MOST_ELEMENTS = 64
"""Integer tensors with more elements are no shapes."""

_INTEGER_TYPES = (6, 7)  # INT32 and INT64 of onnx.TensorProto


def apply_size_rule(node: NodeView) -> Value | None:
    """Compute the elements of a node's only output; None if the node does not compute with sizes.

    Raises:
        Mixes: it computes with the number of entries in a way that has no rule.
    """
    rule = SIZE_RULES.get(node.proto.op_type)
    inputs = [value for value in node.inputs if value is not None]
    if rule is None or not inputs or not all(isinstance(value, Sizes) for value in inputs):
        return None
    try:
        return rule(node)
    except Mixes:
        if all_fixed(inputs):
            return node.fixed_output(0)
        raise


def _sizes(node: NodeView, index: int) -> Sizes:
    value = node.value(index)
    assert isinstance(value, Sizes)
    return value


def _as_vector(elements: Sequence[Size]) -> Sizes:
    return Sizes((Size(len(elements)),), tuple(elements))


def _read_shape(node: NodeView) -> Value:
    """Shape: the sizes of all dimensions, or of some."""
    shape = node.value(0).shape
    if shape is None:
        return Fixed()
    start = node.attribute("start", 0)
    end = node.attribute("end", len(shape))
    return _as_vector(shape[slice(start, end)])


def _read_size(node: NodeView) -> Value:
    """Size: the number of elements."""
    shape = node.value(0).shape
    return Fixed() if shape is None else Sizes((), (product(shape),))


def _range(node: NodeView) -> Value:
    """Range: the numbers of the entries where it counts from zero to their number in steps of one."""
    start, limit, delta = (_sizes(node, index).elements[0] for index in range(3))
    if (start, limit, delta) == (Size(0), node.axis, ONE):
        return Numbers((node.axis,), Place(0))
    if any(size.follows_axis for size in (start, limit, delta)):
        raise Mixes("counts as far as the number of entries says")
    return node.fixed_output(0)


def _elementwise(compute: Callable[[Size, Size], Size]) -> Callable[[NodeView], Value]:
    """Make the rule of an operator that computes element by element, of one input or more."""

    def rule(node: NodeView) -> Value:
        values = [_sizes(node, index) for index in range(len(node.inputs))]
        count = max(len(value.elements) for value in values)
        if any(len(value.elements) not in (1, count) for value in values):
            raise Mixes("joins shapes of different ranks")
        columns = [value.elements * (count if len(value.elements) == 1 else 1) for value in values]
        elements = tuple(reduce(compute, row) for row in zip(*columns, strict=True))
        return Sizes((Size(count),) if any(value.shape for value in values) else (), elements)

    return rule


def _add(left: Size, right: Size) -> Size:
    if left.symbols == right.symbols:
        factor = left.factor + right.factor
        return Size(factor, left.symbols if factor else ())
    if Size(0) in (left, right):
        return right if left == Size(0) else left
    return combined("+", left, right)


def _subtract(left: Size, right: Size) -> Size:
    if left.symbols == right.symbols:
        factor = left.factor - right.factor
        return Size(factor, left.symbols if factor else ())
    return left if right == Size(0) else combined("-", left, right)


def _divide(left: Size, right: Size) -> Size:
    exact = left.divided_by(right)
    if exact is not None:
        return exact
    if left.is_number and right.is_number and right.factor:
        return Size(math.trunc(left.factor / right.factor))
    return combined("/", left, right)


def _extreme(choose: Callable[[int, int], int], name: str) -> Callable[[Size, Size], Size]:
    def compute(left: Size, right: Size) -> Size:
        if left == right:
            return left
        if left.is_number and right.is_number:
            return Size(choose(left.factor, right.factor))
        return combined(name, left, right)

    return compute


def _absolute(node: NodeView) -> Value:
    """Abs: sizes are never negative, but differences may be."""
    value = _sizes(node, 0)
    elements = [
        combined("abs", size, Size(0))
        if any(symbol.name.startswith("(") for symbol in size.symbols)  # computed, and no dimension's own size
        else Size(abs(size.factor), size.symbols)
        for size in value.elements
    ]
    return Sizes(value.shape, tuple(elements))


def _cast(node: NodeView) -> Value:
    """Cast: to another integer type, or to one in which elements are not followed."""
    value = _sizes(node, 0)
    if node.attribute("to") in _INTEGER_TYPES:
        return value
    if value.follows_axis:
        raise Mixes("computes with the number of entries")
    return Fixed(value.shape)


def _identity(node: NodeView) -> Value:
    return _sizes(node, 0)


def _concat(node: NodeView) -> Value:
    return _as_vector([size for index in range(len(node.inputs)) for size in _sizes(node, index).elements])


def _gather(node: NodeView) -> Value:
    """Gather: elements at constant places."""
    data = _sizes(node, 0).elements
    places = node.constants(1)
    if not all(-len(data) <= place < len(data) for place in places):
        raise Mixes("reads a size that a shape does not have")
    if node.rank(1) > 1:
        return _unfollowed(_sizes(node, 0))
    return Sizes(node.shape(1), tuple(data[place] for place in places))


def _slice(node: NodeView) -> Value:
    """Slice: a part of a shape."""
    (start,), (end,) = node.constants(1), node.constants(2)
    step = node.constants(4)[0] if node.has(4) else 1
    return _as_vector(_sizes(node, 0).elements[start:end:step])


def _squeeze(node: NodeView) -> Value:
    """Squeeze: an only element as a scalar."""
    value = _sizes(node, 0)
    return Sizes((), value.elements) if len(value.elements) == 1 else value


def _reshape(node: NodeView) -> Value:
    """Reshape: the same elements as a scalar or a vector."""
    value = _sizes(node, 0)
    new_rank = len(_sizes(node, 1).elements)
    if new_rank > 1:
        return _unfollowed(value)
    return _as_vector(value.elements) if new_rank else Sizes((), value.elements)


def _unsqueeze(node: NodeView) -> Value:
    """Unsqueeze: a scalar as a vector."""
    value = _sizes(node, 0)
    if value.shape or len(node.constants(1, "axes")) > 1:
        return _unfollowed(value)
    return _as_vector(value.elements)


def _unfollowed(value: Sizes) -> Value:
    """A tensor whose elements are followed no further."""
    if value.follows_axis:
        raise Mixes("moves the number of entries to where it is not followed")
    return Fixed()


def _product(node: NodeView) -> Value:
    """ReduceProd: the number of elements that a shape has."""
    value = _sizes(node, 0)
    result = product(value.elements)
    return _as_vector([result]) if node.attribute("keepdims", 1) else Sizes((), (result,))


SHAPE_READERS: Mapping[str, Callable[[NodeView], Value]] = {"Shape": _read_shape, "Size": _read_size}
"""They read the shape of any tensor, and of its values nothing."""

SIZE_RULES: Mapping[str, Callable[[NodeView], Value]] = {
    "Abs": _absolute,
    "Add": _elementwise(_add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(_divide),
    "Gather": _gather,
    "Identity": _identity,
    "Max": _elementwise(_extreme(max, "max")),
    "Min": _elementwise(_extreme(min, "min")),
    "Mul": _elementwise(Size.times),
    "Range": _range,
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(_subtract),
    "Unsqueeze": _unsqueeze,
}
