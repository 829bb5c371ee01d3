"""Operators that move, choose, repeat and join entries, and compute nothing.

Enters: a node with entries in an input. Leaves: where its outputs have them, or how it mixes them. Separate because
these rules follow places, which `compute_rules` mostly leave unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch2engine.onnx_graph.axis_flow.node_view import NodeView, from_front
from torch2engine.onnx_graph.axis_flow.sizes import ONE, Size, product
from torch2engine.onnx_graph.axis_flow.values import Entries, Fixed, Mixed, Mixes, Numbers, Place, Shape, Value

__all__ = ["LAYOUT_RULES", "require_other_dim"]

_LARGEST_INDEX = 2**31 - 1  # exporters write at least this number for "to the end"


def require_other_dim(value: Entries, dim: int, how: str) -> None:
    """Refuse a node that works along the dimension of the entries.

    Raises:
        Mixes: it does.
    """
    if value.place.dim == dim:
        raise Mixes(how)


def _movable(node: NodeView) -> Entries | Numbers:
    """The first input, which may hold the numbers of the entries if it is only moved."""
    value = node.value(0)
    if isinstance(value, Numbers) and value.column is None:
        return value
    return node.entries(0)


def _transpose(node: NodeView) -> Value:
    value = _movable(node)
    rank = len(value.shape)
    order = [from_front(dim, rank) for dim in node.attribute("perm", range(rank - 1, -1, -1))]
    place = value.place.moved_to(order.index(value.place.dim))
    return replace(value, shape=tuple(value.shape[dim] for dim in order), place=place)


def _unsqueeze(node: NodeView) -> Value:
    value = _movable(node)
    axes = node.constants(1, "axes")
    rank = len(value.shape) + len(axes)
    new = {from_front(axis, rank) for axis in axes}
    old = [dim for dim in range(rank) if dim not in new]
    shape = [ONE] * rank
    for dim, size in zip(old, value.shape, strict=True):
        shape[dim] = size
    return replace(value, shape=tuple(shape), place=value.place.moved_to(old[value.place.dim]))


def _squeeze(node: NodeView) -> Value:
    value = _movable(node)
    rank = len(value.shape)
    axes = {from_front(axis, rank) for axis in node.constants(1, "axes")}
    if not axes:
        raise Mixes("removes every dimension of size 1, that of the entries too if there is one entry")
    if value.place.dim in axes:
        raise Mixes("removes the dimension of the entries, which works for one entry alone")
    left = [dim for dim in range(rank) if dim not in axes]
    place = value.place.moved_to(left.index(value.place.dim))
    return replace(value, shape=tuple(value.shape[dim] for dim in left), place=place)


def _flatten(node: NodeView) -> Value:
    value = node.entries(0)
    axis = node.attribute("axis", 1)
    axis = axis + len(value.shape) if axis < 0 else axis
    return _regrouped(node, value, (product(value.shape[:axis]), product(value.shape[axis:])))


def _reshape(node: NodeView) -> Value:
    value = _movable(node)
    elements = node.elements(1)
    if elements is None:
        raise Mixes("reshapes to sizes that can't be followed")
    sizes = list(elements)
    if not node.attribute("allowzero", 0):
        sizes = [
            value.shape[dim] if size == Size(0) and dim < len(value.shape) else size for dim, size in enumerate(sizes)
        ]
    if Size(-1) in sizes:
        free = sizes.index(Size(-1))
        rest = product(sizes[:free] + sizes[free + 1 :])
        quotient = product(value.shape).divided_by(rest)
        if quotient is None:
            raise Mixes("reshapes to sizes that can't be followed")
        sizes[free] = quotient
    return _regrouped(node, value, sizes)


def _regrouped(node: NodeView, value: Entries | Numbers, sizes: Sequence[Size]) -> Value:
    """The same elements in the same order, with other dimensions."""
    place = value.place
    before = product(value.shape[: place.dim]).times(place.outer)
    behind = product(value.shape[place.dim + 1 :]).times(place.inner)
    dims = [dim for dim, size in enumerate(sizes) if size.follows_axis]
    if len(dims) == 1:
        (dim,) = dims
        outer = before.divided_by(product(sizes[:dim]))
        inner = behind.divided_by(product(sizes[dim + 1 :]))
        if outer is not None and inner is not None:
            new_place = Place(dim, outer, inner)
            if new_place.size(node.axis) == sizes[dim]:
                return replace(value, shape=tuple(sizes), place=new_place)
    raise Mixes(f"reshapes to [{', '.join(map(str, sizes))}], in which entries lie across dimensions")


def _expand(node: NodeView) -> Value:
    """Expand: entries stay in place. A tensor that all entries share becomes entries along a new or expanded axis."""
    elements = node.elements(1)
    if elements is None:
        raise Mixes("expands to sizes that can't be followed")
    value = node.value(0)
    if isinstance(value, (Entries, Numbers)):
        shift = max(len(elements) - len(value.shape), 0)
        place = value.place.moved_to(value.place.dim + shift)
        own = value.shape
    else:
        node.require_fixed(0)
        own = node.shape(0)
        place = _expanded_place(node, own, elements)
    rank = max(len(elements), len(own))
    shape: list[Size] = []
    for dim, (left, right) in enumerate(zip(_padded(own, rank), _padded(elements, rank), strict=True)):
        if dim == place.dim:
            if right not in (ONE, place.size(node.axis)):
                raise Mixes(f"expands the dimension of the entries to {right}")
            shape.append(place.size(node.axis))
        elif right.follows_axis:
            raise Mixes("repeats as often as there are entries, along another dimension")
        else:
            shape.append(_broadcast_size(left, right) or node.size_of_output(dim))
    if isinstance(value, Numbers):
        return Numbers(tuple(shape), place, value.column)
    return Entries(tuple(shape), place)


def _expanded_place(node: NodeView, own: Shape, elements: Sequence[Size]) -> Place:
    """The place of the entries, where a tensor that all entries share is repeated for each of them."""
    rank = max(len(elements), len(own))
    expanded = _padded(elements, rank)
    dims = [dim for dim, size in enumerate(expanded) if size.follows_axis]
    inner = expanded[dims[0]].divided_by(node.axis) if len(dims) == 1 else None
    if inner is None or inner.follows_axis or _padded(own, rank)[dims[0]] != ONE:
        raise Mixes("repeats values in a way that follows the number of entries")
    return Place(dims[0], inner=inner)


def _padded(shape: Sequence[Size], rank: int) -> list[Size]:
    return [ONE] * (rank - len(shape)) + list(shape)


def _broadcast_size(left: Size, right: Size) -> Size | None:
    """The size to which two sizes are broadcast; None if it is unknown."""
    if left == right or right == ONE:
        return left
    return right if left == ONE else None


def _constant_of_shape(node: NodeView) -> Value:
    elements = node.elements(0)
    assert elements is not None, "only a shape that follows the axis comes here"
    place = _expanded_place(node, (), elements)
    return Entries(elements, place)


def _tile(node: NodeView) -> Value:
    repeats = node.elements(1)
    if repeats is None:
        raise Mixes("repeats as often as can't be followed")
    value = node.tensor(0)
    if isinstance(value, Entries):
        if repeats[value.place.dim] != ONE or any(size.follows_axis for size in repeats):
            raise Mixes("repeats the entries")
        shape = tuple(size.times(times) for size, times in zip(value.shape, repeats, strict=True))
        return Entries(shape, value.place)
    shape = node.shape(0)
    dims = [dim for dim, size in enumerate(repeats) if size.follows_axis]
    if len(dims) != 1 or repeats[dims[0]] != node.axis:
        raise Mixes("repeats values in a way that follows the number of entries")
    tiled = tuple(size.times(times) for size, times in zip(shape, repeats, strict=True))
    return Entries(tiled, Place(dims[0], inner=shape[dims[0]]))


def _concat(node: NodeView) -> Value:
    values = [node.value(index) for index in range(len(node.inputs))]
    rank = node.rank(0)
    axis = node.axis_attribute(rank, 0)
    if any(isinstance(value, Numbers) for value in values):
        return _concat_indices(node, values, axis)
    place = node.entries(0).place
    for index in range(len(values)):
        value = node.entries(index)
        require_other_dim(value, axis, "joins other values to the entries, along their dimension")
        if value.place != place:
            raise Mixes("joins entries that lie along different dimensions")
    return node.entries_like(place, rank)


def _concat_indices(node: NodeView, values: Sequence[Value], axis: int) -> Value:
    """Join columns of indices, of which one is the number of the entry."""
    columns = [index for index, value in enumerate(values) if isinstance(value, Numbers)]
    first = node.value(columns[0])
    assert isinstance(first, Numbers)
    is_last = axis == len(first.shape) - 1 and all(value.shape and value.shape[-1] == ONE for value in values)
    if len(columns) > 1 or first.column is not None or not is_last or first.place.dim == axis:
        raise Mixes("computes with the numbers of the entries")
    for index in range(len(values)):
        if index not in columns and node.entries(index).place != first.place:
            raise Mixes("joins entries that lie along different dimensions")
    return Numbers((*first.shape[:-1], Size(len(values))), first.place, columns[0])


def _split(node: NodeView) -> list[Value]:
    value = node.entries(0)
    axis = node.axis_attribute(len(value.shape), 0)
    node.require_fixed(1)
    require_other_dim(value, axis, "splits the entries' dimension")
    return [node.entries_like(value.place, len(value.shape), index) for index in range(len(node.proto.output))]


def _slice(node: NodeView) -> Value:
    value = node.entries(0)
    rank = len(value.shape)
    starts = node.elements(1)
    ends = node.elements(2)
    if starts is None and not node.has(3):
        raise Mixes("takes parts that can't be followed")
    axes = node.constants(3) if node.has(3) else tuple(range(len(starts or ())))
    steps = node.constants(4) if node.has(4) else (1,) * len(axes)
    shape = [*value.shape]
    for index, axis in enumerate(axes):
        dim = from_front(axis, rank)
        start = starts[index] if starts else None
        end = ends[index] if ends else None
        if dim == value.place.dim:
            size = value.place.size(node.axis)
            is_whole = end is not None and (end == size or (end.is_number and end.factor >= _LARGEST_INDEX))
            if start != Size(0) or not is_whole or steps[index] != 1:
                raise Mixes("takes a part of the entries, or turns them round")
        elif any(size is not None and size.follows_axis for size in (start, end)):
            raise Mixes("takes as much as the number of entries says")
        else:
            shape[dim] = node.size_of_output(dim)
    return Entries(tuple(shape), value.place)


def _gather(node: NodeView) -> Value:
    indices = node.tensor(1)
    data = node.tensor(0)
    rank = node.rank(0)
    axis = node.axis_attribute(rank, 0)
    index_rank = node.rank(1)
    if isinstance(data, Fixed):
        place = node.entries(1).place
        return node.entries_like(place.moved_to(place.dim + axis), rank + index_rank - 1)
    if isinstance(indices, Entries):
        raise Mixes("chooses for each entry from what may be other entries")
    require_other_dim(data, axis, "chooses among the entries")
    dim = data.place.dim if data.place.dim < axis else data.place.dim + index_rank - 1
    return node.entries_like(data.place.moved_to(dim), rank + index_rank - 1)


def _gather_elements(node: NodeView) -> Value:
    data = node.entries(0)
    indices = node.entries(1)
    axis = node.axis_attribute(len(data.shape), 0)
    require_other_dim(data, axis, "chooses among the entries")
    if data.place != indices.place:
        raise Mixes("chooses for each entry from what may be other entries")
    return Entries(indices.shape, indices.place)


def _gather_nd(node: NodeView) -> Value:
    """GatherND: rows by indices, of which one column may be the entry's own number."""
    batch_dims = node.attribute("batch_dims", 0)
    data = node.tensor(0)
    indices = node.value(1)
    index_rank = node.rank(1)
    count = node.shape(1)[-1]
    if not count.is_number:
        raise Mixes("takes indices of unknown length")
    rank = index_rank - 1 + node.rank(0) - count.factor - batch_dims
    if isinstance(indices, Numbers):
        is_own = isinstance(data, Entries) and not batch_dims and data.place == Place(indices.column or 0)
        if not is_own or (indices.column is None and count != ONE):
            raise Mixes("computes with the numbers of the entries")
        return node.entries_like(indices.place, rank)
    indexed = count.factor + batch_dims
    if isinstance(data, Entries) and isinstance(node.tensor(1), Fixed) and data.place.dim >= indexed:
        return node.entries_like(data.place.moved_to(data.place.dim - indexed + index_rank - 1), rank)
    rows = node.entries(1)
    require_other_dim(rows, index_rank - 1, "reads the entries as one index")
    if isinstance(data, Fixed):
        if rows.place.dim < batch_dims:
            raise Mixes("takes rows by the numbers of the entries")
        return node.entries_like(rows.place, rank)
    if data.place.dim >= batch_dims or data.place != rows.place:
        raise Mixes("chooses for each entry from what may be other entries")
    return node.entries_like(rows.place, rank)


def _scatter_elements(node: NodeView) -> Value:
    values = [node.entries(index) for index in range(3)]
    axis = node.axis_attribute(len(values[0].shape), 0)
    for value in values:
        require_other_dim(value, axis, "writes among the entries")
        if value.place != values[0].place:
            raise Mixes("writes entries that lie along different dimensions")
    return values[0]


def _pad(node: NodeView) -> Value:
    value = node.entries(0)
    rank = len(value.shape)
    pads = node.elements(1) if node.has(1) else None
    axes = node.constants(3) if node.has(3) else tuple(range(rank))
    dims = [from_front(axis, rank) for axis in axes]
    node.require_fixed(2)
    if pads is None or any(size.follows_axis for size in pads):
        raise Mixes("pads by widths that can't be followed")
    if value.place.dim in dims:
        index = dims.index(value.place.dim)
        if (pads[index], pads[index + len(dims)]) != (Size(0), Size(0)):
            raise Mixes("pads the entries' dimension")
    return node.entries_like(value.place, rank)


def _one_hot(node: NodeView) -> Value:
    value = node.entries(0)
    node.require_fixed(1, 2)
    rank = len(value.shape) + 1
    axis = node.axis_attribute(rank, -1)
    dim = value.place.dim + (axis <= value.place.dim)
    return node.entries_like(value.place.moved_to(dim), rank)


def _trilu(node: NodeView) -> Value:
    value = node.entries(0)
    node.require_fixed(1)
    if value.place.dim >= len(value.shape) - 2:
        raise Mixes("masks by the numbers of the entries")
    return value


def _rows_first(node: NodeView) -> Value:
    """DepthToSpace and SpaceToDepth: they move channels and pixels within an image."""
    value = node.entries(0)
    if value.place.dim:
        raise Mixes("moves values among channels and pixels")
    return node.entries_like(value.place, len(value.shape))


def _identity(node: NodeView) -> Value:
    value = node.value(0)
    assert not isinstance(value, Mixed), "nodes with mixed inputs have no rule"
    return value


Rule = Callable[[NodeView], "Value | list[Value]"]

LAYOUT_RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _rows_first,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "Slice": _slice,
    "SpaceToDepth": _rows_first,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""Operator -> the rule for a node of it whose inputs are not all the same for every entry."""
