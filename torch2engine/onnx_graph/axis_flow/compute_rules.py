"""Operators that compute with entries.

Enters: a node with entries in an input. Leaves: where its outputs have them, or how it mixes them. Separate because
these rules say along which dimensions an operator sums, compares or normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch2engine.onnx_graph.axis_flow.layout_rules import require_other_dim
from torch2engine.onnx_graph.axis_flow.node_view import NodeView, from_front
from torch2engine.onnx_graph.axis_flow.sizes import ONE, Size
from torch2engine.onnx_graph.axis_flow.values import Entries, Fixed, Mixes, Place, Shape, Value

__all__ = ["COMPUTE_RULES", "POINTWISE"]

POINTWISE = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd"),
        *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div"),
        *("Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish"),
        *("IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul"),
        *("Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
        *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
        *("Where", "Xor"),
    }
)
"""Operators that broadcast their inputs and compute element by element."""

_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_IMAGE_OPERATORS = (
    *("AveragePool", "ConvTranspose", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization"),
    *("InstanceNormalization", "LRN", "LpPool", "MaxPool"),
)


def _pointwise(node: NodeView) -> Value:
    """Broadcast; entries must lie along one dimension, in which nothing else has a size."""
    values = [node.tensor(index) for index in range(len(node.inputs)) if node.has(index)]
    return _broadcast(node, values)


def _broadcast(node: NodeView, values: Sequence[Entries | Fixed]) -> Entries:
    shapes: list[Shape] = []
    for value in values:
        if value.shape is None:
            raise Mixes("has an input of unknown rank")
        shapes.append(value.shape)
    rank = max(map(len, shapes))
    places = {
        value.place.moved_to(value.place.dim + rank - len(value.shape))
        for value in values
        if isinstance(value, Entries)
    }
    if len(places) > 1:
        raise Mixes("joins entries that lie along different dimensions")
    (place,) = places
    columns = [[ONE] * (rank - len(shape)) + list(shape) for shape in shapes]
    for value, column in zip(values, columns, strict=True):
        if isinstance(value, Fixed) and column[place.dim] != ONE:
            raise Mixes("uses other values for each number of an entry")
    sizes = [_common_size([column[dim] for column in columns]) or node.size_of_output(dim) for dim in range(rank)]
    sizes[place.dim] = place.size(node.axis)
    return Entries(tuple(sizes), place)


def _common_size(sizes: Sequence[Size]) -> Size | None:
    """The size to which these sizes are broadcast; None if it is unknown."""
    others = {size for size in sizes if size != ONE}
    if len(others) > 1:
        # A size that is not a number equals the number, or is 1.
        others = {size for size in others if size.is_number}
    return next(iter(others)) if len(others) == 1 else ONE if all(size == ONE for size in sizes) else None


def _same(node: NodeView) -> Value:
    """An operator that works on one input element by element; its other inputs are the same for all entries."""
    node.require_fixed(*range(1, len(node.inputs)))
    return node.entries(0)


def _dropout(node: NodeView) -> Value:
    if node.has(2) or node.opset < 12:
        raise Mixes("may drop values at random")
    return _same(node)


def _along_axis(how: str, default: int, least_opset: int = 1) -> Callable[[NodeView], Value]:
    """Make the rule of an operator that works along one dimension and keeps the shape."""

    def rule(node: NodeView) -> Value:
        value = _same(node)
        assert isinstance(value, Entries)
        if node.opset < least_opset:
            raise Mixes(f"has another meaning before opset {least_opset}")
        require_other_dim(value, node.axis_attribute(len(value.shape), default), how)
        return value

    return rule


def _running_sum(node: NodeView) -> Value:
    value = _same(node)
    assert isinstance(value, Entries)
    (axis,) = node.constants(1)
    require_other_dim(value, from_front(axis, len(value.shape)), "sums over the entries before")
    return value


def _top(node: NodeView) -> list[Value]:
    value = _same(node)
    assert isinstance(value, Entries)
    require_other_dim(value, node.axis_attribute(len(value.shape), -1), "ranks the entries")
    return [node.entries_like(value.place, len(value.shape), index) for index in range(2)]


def _without_dims(node: NodeView, value: Entries, dims: Sequence[int], keeps: bool) -> Value:
    """The entries that a reduction leaves."""
    rank = len(value.shape)
    if keeps:
        shape = tuple(ONE if dim in dims else size for dim, size in enumerate(value.shape))
        return Entries(shape, value.place)
    left = [dim for dim in range(rank) if dim not in dims]
    place = value.place.moved_to(left.index(value.place.dim))
    return Entries(tuple(value.shape[dim] for dim in left), place)


def _best(node: NodeView) -> Value:
    """ArgMax and ArgMin."""
    value = node.entries(0)
    axis = node.axis_attribute(len(value.shape), 0)
    require_other_dim(value, axis, "compares the entries")
    return _without_dims(node, value, [axis], bool(node.attribute("keepdims", 1)))


def _reduce(node: NodeView) -> Value:
    value = node.entries(0)
    rank = len(value.shape)
    axes = node.constants(1, "axes")
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return value
    dims = [from_front(axis, rank) for axis in axes] or list(range(rank))
    if value.place.dim in dims:
        raise Mixes("reduces over the entries")
    return _without_dims(node, value, dims, bool(node.attribute("keepdims", 1)))


def _layer_norm(node: NodeView) -> list[Value]:
    value = _same(node)
    assert isinstance(value, Entries)
    axis = node.axis_attribute(len(value.shape), -1)
    if value.place.dim >= axis:
        raise Mixes("normalises over the entries")
    statistics = tuple(ONE if dim >= axis else size for dim, size in enumerate(value.shape))
    return [value, *[Entries(statistics, value.place) for _ in node.proto.output[1:]]]


def _batch_norm(node: NodeView) -> Value:
    value = _same(node)
    assert isinstance(value, Entries)
    trains = len(node.proto.output) > 1  # how a node said so before opset 14
    if trains or node.attribute("training_mode", 0) or node.opset < 9:
        raise Mixes("normalises over the entries")
    require_other_dim(value, 1, "has a weight for each entry's number")
    return value


def _image(node: NodeView) -> Value:
    """An operator on images, of which each is computed alone."""
    value = _same(node)
    assert isinstance(value, Entries)
    if value.place.dim:
        raise Mixes("works over channels and pixels, which is where the entries are")
    return node.entries_like(value.place, len(value.shape))


def _conv(node: NodeView) -> Value:
    """Conv: an image alone; with a kernel of one pixel also a pixel alone."""
    value = _same(node)
    assert isinstance(value, Entries)
    spatial = value.place.dim - 2
    if spatial >= 0:
        weight = node.shape(1)
        count = len(weight) - 2
        is_pointwise = weight[spatial + 2] == ONE and node.attribute("auto_pad", "NOTSET") == "NOTSET"
        strides = node.attribute("strides", [1] * count)
        pads = node.attribute("pads", [0] * 2 * count)
        if not is_pointwise or strides[spatial] != 1 or pads[spatial] or pads[spatial + count]:
            raise Mixes("slides its kernel over the entries")
    elif spatial == -1:
        raise Mixes("sums over the entries")
    return node.entries_like(value.place, len(value.shape))


def _resize(node: NodeView) -> Value:
    """Resize: images alone, by constant scales or to constant sizes."""
    value = node.entries(0)
    rank = len(value.shape)
    node.require_fixed(1, 2)
    dims = [from_front(axis, rank) for axis in node.attribute("axes", range(rank))]
    sizes = dict(zip(dims, (node.elements(3) if node.has(3) else None) or (), strict=False))
    scales = dict(zip(dims, _constant_scales(node), strict=False))
    is_kept = sizes.pop(value.place.dim, None) == value.place.size(node.axis) or scales.get(value.place.dim) == 1
    if value.place.dim in dims and not is_kept:
        raise Mixes("resizes the entries' dimension, or by scales that are not followed")
    if any(size.follows_axis for size in sizes.values()):
        raise Mixes("resizes images to the number of entries")
    is_cropped = node.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if is_cropped or node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Mixes("resizes in a way that has no rule")
    return node.entries_like(value.place, rank)


def _constant_scales(node: NodeView) -> tuple[float, ...]:
    """The scales of a Resize, or nothing if they are not constant."""
    scales = node.tensor(2) if node.has(2) else None
    return (scales.numbers or ()) if isinstance(scales, Fixed) else ()


def _grid_sample(node: NodeView) -> Value:
    values = [node.entries(0), node.entries(1)]
    if any(value.place != Place(0) for value in values):
        raise Mixes("samples among the entries")
    return node.entries_like(Place(0), len(values[0].shape))


def _matmul(node: NodeView) -> Value:
    """MatMul: rows of the left, columns of the right, and whole products."""
    left = node.tensor(0)
    right = node.tensor(1)
    shapes = [node.shape(0), node.shape(1)]
    if len(shapes[1]) < 2 or len(shapes[0]) < 2:
        return _matrix_and_vector(node, left, right)
    rank = max(len(shapes[0]), len(shapes[1]))
    is_row = isinstance(left, Entries) and left.place.dim == len(shapes[0]) - 2
    is_column = isinstance(right, Entries) and right.place.dim == len(shapes[1]) - 1
    if isinstance(left, Entries) and left.place.dim == len(shapes[0]) - 1:
        raise Mixes("sums over the entries")
    if isinstance(right, Entries) and right.place.dim == len(shapes[1]) - 2:
        raise Mixes("sums over the entries")
    if is_row or is_column:
        if isinstance(left, Entries) and isinstance(right, Entries):
            raise Mixes("multiplies every entry by every other")
        value = left if isinstance(left, Entries) else right
        assert isinstance(value, Entries)
        return node.entries_like(value.place.moved_to(rank - 2 if is_row else rank - 1), rank)
    stacks = [_stack(value) for value in (left, right)]
    found = _broadcast(node, stacks)
    return node.entries_like(found.place, rank)


def _stack(value: Entries | Fixed) -> Entries | Fixed:
    """The dimensions before a matrix, with ones in the place of the matrix."""
    assert value.shape is not None
    shape = (*value.shape[:-2], ONE, ONE)
    return Entries(shape, value.place) if isinstance(value, Entries) else Fixed(shape)


def _matrix_and_vector(node: NodeView, left: Entries | Fixed, right: Entries | Fixed) -> Value:
    rank = node.rank(0)
    if isinstance(right, Fixed) and isinstance(left, Entries) and node.rank(1) == 1 and left.place.dim < rank - 1:
        return node.entries_like(left.place, rank - 1)
    raise Mixes("multiplies entries with a vector in a way that has no rule")


def _gemm(node: NodeView) -> Value:
    left = node.tensor(0)
    right = node.tensor(1)
    node_shape = [Size(1), Size(1)]
    if isinstance(left, Entries) == isinstance(right, Entries):
        raise Mixes("multiplies every entry by every other, or adds other values to each")
    value, dim = (left, 0) if isinstance(left, Entries) else (right, 1)
    assert isinstance(value, Entries)
    is_turned = bool(node.attribute("transA" if dim == 0 else "transB", 0))
    if value.place.dim != (1 - dim if is_turned else dim):
        raise Mixes("sums over the entries")
    place = value.place.moved_to(dim)
    node_shape[dim] = place.size(node.axis)
    if node.has(2):
        _broadcast(node, [Entries(tuple(node_shape), place), node.tensor(2)])
    return node.entries_like(place, 2)


def _einsum(node: NodeView) -> Value:
    """Einsum: the entries' letter must be in the result, and in no operand without entries."""
    equation = node.attribute("equation", "").replace(" ", "")
    sides = equation.split("->")
    if len(sides) != 2 or "." in equation:
        raise Mixes("sums by an equation that can't be followed")
    values = [node.tensor(index) for index in range(len(node.inputs))]
    terms = sides[0].split(",")
    pairs = list(zip(terms, values, strict=True))
    letters = {term[value.place.dim] for term, value in pairs if isinstance(value, Entries)}
    places = {(value.place.outer, value.place.inner) for value in values if isinstance(value, Entries)}
    if len(letters) > 1 or len(places) > 1:
        raise Mixes("joins entries that lie along different dimensions")
    (letter,) = letters
    for term, value in pairs:
        if term.count(letter) > 1 or (letter in term and isinstance(value, Fixed)):
            raise Mixes("joins entries with what is not one value for each")
    if letter not in sides[1]:
        raise Mixes("sums over the entries")
    ((outer, inner),) = places
    return node.entries_like(Place(sides[1].index(letter), outer, inner), len(sides[1]))


def _recurrent(node: NodeView) -> list[Value]:
    """LSTM, GRU and RNN: sequences of a batch are computed each alone."""
    if node.attribute("layout", 0):
        raise Mixes("has a layout without a rule")
    value = node.entries(0)
    if value.place != Place(1):
        raise Mixes("goes from entry to entry")
    node.require_fixed(1, 2, 3, 7)
    for index, place in ((4, Place(0)), (5, Place(1)), (6, Place(1))):
        if node.has(index) and node.entries(index).place != place:
            raise Mixes("begins with states that lie along another dimension")
    return [node.entries_like(Place(2), 4, 0), *[node.entries_like(Place(1), 3, 1) for _ in node.proto.output[1:]]]


def _attention(node: NodeView) -> Value:
    """Attention: the queries, keys and values of a batch, each alone."""
    if any(node.has(index) for index in range(4, len(node.inputs))) or len(node.proto.output) > 1:
        raise Mixes("has past keys or lengths, for which there is no rule")
    for index in range(3):
        if node.entries(index).place != Place(0):
            raise Mixes("attends to other entries")
    if node.has(3):
        scores = Entries((node.axis, ONE, ONE, ONE), Place(0))
        mask = node.tensor(3)
        if isinstance(mask, Entries) or mask.shape is None or len(mask.shape) > 3:
            _broadcast(node, [scores, mask])
    return node.entries_like(Place(0), node.rank(0))


def _quantize(node: NodeView) -> Value:
    """QuantizeLinear and DequantizeLinear: a scale for the whole tensor, or one along another dimension."""
    value = _same(node)
    assert isinstance(value, Entries)
    scale = node.shape(1)
    if scale not in ((), (ONE,)):
        axis = node.axis_attribute(len(value.shape), 1)
        if len(scale) != 1:
            raise Mixes("has a scale for each block")
        require_other_dim(value, axis, "has a scale for each entry's number")
    return value


Rule = Callable[[NodeView], "Value | list[Value]"]

COMPUTE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_IMAGE_OPERATORS, _image),
    **dict.fromkeys(("ArgMax", "ArgMin"), _best),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantize),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), _along_axis("compares the entries", -1, 13)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "CumSum": _running_sum,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "LpNormalization": _along_axis("normalises over the entries", -1),
    "MatMul": _matmul,
    "Resize": _resize,
    "TopK": _top,
}
"""Operator -> the rule for a node of it whose inputs are not all the same for every entry."""
