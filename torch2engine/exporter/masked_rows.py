"""Writes at a mask, as in `y[mask] *= 2` or by the experts of a mixture → `torch.where`, which has a fixed size.

Enters: a program. Leaves: one in which no size depends on a mask at which rows are only read, computed and written.
Separate because PyTorch takes out the chosen rows, whose number depends on values, and an engine has no such sizes.
Where the rows between reading and writing are computed one by one, all of them can be computed instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import getitem
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public name
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from torch2engine.exporter.value_checks import erase_value_checks

__all__ = ["write_masks_as_where"]

_ATEN: Any = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.to.dtype, _ATEN.clone.default)
_WITH_INDEX = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
_PLACES_OF_EACH_DIM = (_ATEN.where.default, _ATEN.nonzero_numpy.default)
_COLUMNS = (_ATEN.squeeze.dim, _ATEN.squeeze.default, _ATEN.select.int, _ATEN.view.default, _ATEN.reshape.default)
# Operators that compute each row by itself: whether a node does, given how many dimensions a row has.
_BY_ROWS: Mapping[Any, Callable[[fx.Node, int], bool]] = {
    _ATEN.linear.default: lambda node, trailing: trailing > 0,
    _ATEN.layer_norm.default: lambda node, trailing: len(cast("Any", node.args[1])) <= trailing,
    _ATEN.softmax.int: lambda node, trailing: -trailing <= cast("Any", node.args[1]) < 0,
    _ATEN.log_softmax.int: lambda node, trailing: -trailing <= cast("Any", node.args[1]) < 0,
}


@dataclass(frozen=True)
class _MaskIndex:
    """An index `[:, ..., mask]`.

    Args:
        mask: of bool.
        leading: how many dimensions come before those of the mask.
        rank: of the mask.
        trailing: how many dimensions come behind those of the mask.
    """

    mask: fx.Node
    leading: int
    rank: int
    trailing: int


def write_masks_as_where(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace writes at a mask; a write of rows that can't be computed one by one stays.

    Returns:
        the program itself if it takes no rows by a mask, else another one without writes.
    """
    if not any(node.target in _WITH_INDEX and _mask_index(node) for node in program.graph.nodes):
        return program
    functional = program.run_decompositions({})  # nothing but writes is decomposed
    graph = functional.graph_module.graph
    for node in list(graph.nodes):
        with suppress(_NotRowByRow):
            if node.target == _ATEN.index_put.default:
                _replace_index_put(graph, node)
            elif node.target == _ATEN.index_add.default:
                _replace_index_add(graph, node)
    graph.eliminate_dead_code()
    erase_value_checks(functional)
    return functional


class _NotRowByRow(Exception):
    """A value has rows that depend on one another, so that there are no rows for the places outside the mask."""


def _replace_index_put(graph: fx.Graph, write: fx.Node) -> None:
    index = _mask_index(write)
    target, _, value, *is_sum = write.args
    if index is None or any(is_sum) or write.kwargs:
        return
    with graph.inserting_before(write):
        rows = _AllRows(graph, write, index).of(value)
        _replace_by_where(graph, write, index, rows, target)


def _replace_index_add(graph: fx.Graph, add: fx.Node) -> None:
    """Replace `index_add` at the places of a mask."""
    target, dim, places, value = add.args
    rank = _value(target).ndim
    index = None if add.kwargs or rank == 0 else _find_mask(target, int(cast("Any", dim)) % rank, places)
    if index is None:
        return
    with graph.inserting_before(add):
        rows = _AllRows(graph, add, index).of(value)
        _replace_by_where(graph, add, index, _add_node(graph, add, _ATEN.add.Tensor, (target, rows)), target)


def _replace_by_where(graph: fx.Graph, write: fx.Node, index: _MaskIndex, rows: Any, target: Any) -> None:
    """Replace a node by `rows` where the mask is true, and by `target` elsewhere."""
    mask: Any = index.mask
    for _ in range(index.trailing):
        mask = _add_node(graph, write, _ATEN.unsqueeze.default, (mask, -1))
    write.replace_all_uses_with(_add_node(graph, write, _ATEN.where.self, (mask, rows, target)))
    graph.erase_node(write)


def _mask_index(node: fx.Node) -> _MaskIndex | None:
    """The index of an `index` or `index_put`, if it is a single mask, or its places, behind whole dimensions."""
    indices: Any = node.args[1]
    *before, last = indices
    if any(item is not None for item in before):
        return None
    return _find_mask(node.args[0], len(before), last)


def _find_mask(operand: Any, leading: int, index: Any) -> _MaskIndex | None:
    """The mask behind an index tensor.

    Args:
        operand: the node that is indexed.
        leading: dimensions before the index.
        index: the index's node: of bool, or the places at which a mask of one dimension is true.
    """
    if not isinstance(index, fx.Node):
        return None
    sizes = _value(operand).shape[leading:]
    mask = index if _value(index).dtype == torch.bool else _mask_of_places(index)
    if mask is None or _value(mask).ndim > len(sizes):
        return None
    if mask is not index and not statically_known_true(_value(mask).shape[0] == sizes[0]):
        return None  # the places count in another tensor
    rank = _value(mask).ndim
    return _MaskIndex(mask, leading, rank, len(sizes) - rank)


def _mask_of_places(places: fx.Node) -> fx.Node | None:
    """The one-dimensional mask whose places `torch.where(mask)[0]` and the forms of `nonzero` give; None for others."""
    source: Any = places.args[0] if places.args else None
    if not isinstance(source, fx.Node):
        return None
    is_first = places.target is getitem and source.target in _PLACES_OF_EACH_DIM
    is_column = places.target in _COLUMNS and source.target == _ATEN.nonzero.default
    mask: Any = source.args[0] if is_first or is_column else None
    is_mask = isinstance(mask, fx.Node) and _value(mask).ndim == 1 and _value(mask).dtype == torch.bool
    return mask if is_mask else None


def _value(node: Any) -> Any:
    return node.meta["val"]


class _AllRows:
    """Finds, for a tensor of the rows that a mask chooses, the same tensor of all rows.

    Args:
        graph: where nodes are added, at the graph's place for them.
        write: the node that writes the rows; new nodes take its line.
        index: where it writes them.
    """

    def __init__(self, graph: fx.Graph, write: fx.Node, index: _MaskIndex) -> None:
        self.graph = graph
        self.write = write
        self.index = index
        self.found: dict[fx.Node, Any] = {}

    def of(self, value: Any) -> Any:
        """All rows of a value, or the value itself where it is the same for every row.

        Raises:
            _NotRowByRow: some operator does not compute each row by itself.
        """
        if not isinstance(value, fx.Node):
            return value
        if value not in self.found:
            self.found[value] = self._of_node(value)
        return self.found[value]

    def _of_node(self, node: fx.Node) -> Any:
        tensor = node.meta["val"]
        if not isinstance(tensor, torch.Tensor):
            raise _NotRowByRow
        if node.target == _ATEN.index.Tensor:
            read = _mask_index(node)
            if read is not None and self._is_same_place(read):
                return node.args[0]
        if tensor.ndim <= self.index.trailing and not _depends_on_chosen_rows(node):
            return node
        if tensor.ndim > self.index.trailing and _is_pointwise(node.target):
            return self._computed(node)
        computes_by_rows = _BY_ROWS.get(node.target)
        if tensor.ndim > self.index.trailing and computes_by_rows and computes_by_rows(node, self.index.trailing):
            return self._computed_by_rows(node)
        raise _NotRowByRow

    def _is_same_place(self, read: _MaskIndex) -> bool:
        return read.leading == self.index.leading and _computes_the_same(read.mask, self.index.mask)

    def _computed(self, node: fx.Node) -> Any:
        """The node's operator on all rows of its arguments."""
        options = dict(node.kwargs)
        if any(isinstance(value, fx.Node) for value in options.values()):
            raise _NotRowByRow
        arguments = [self.of(argument) for argument in node.args]
        return _add_node(self.graph, node, node.target, arguments, options)

    def _computed_by_rows(self, node: fx.Node) -> Any:
        """The node's operator on all rows of its first argument; the others are weights and numbers."""
        first, *others = node.args
        if any(isinstance(other, fx.Node) and _depends_on_chosen_rows(other) for other in others):
            raise _NotRowByRow
        rows = self.of(first)
        return _add_node(self.graph, node, node.target, (rows, *others), dict(node.kwargs))


def _depends_on_chosen_rows(node: fx.Node) -> bool:
    value = _value(node)
    return not isinstance(value, torch.Tensor) or bool(free_unbacked_symbols(value.shape))


def _is_pointwise(target: Any) -> bool:
    return isinstance(target, OpOverload) and (torch.Tag.pointwise in target.tags or target in _COPIES)


def _computes_the_same(value: Any, other: Any) -> bool:
    """Tell whether two arguments are computed in the same way from the same nodes."""
    if not (isinstance(value, fx.Node) and isinstance(other, fx.Node)):
        return type(value) is type(other) and value == other
    if value is other:
        return True
    operator: Any = value.target
    if operator is not other.target or not isinstance(operator, OpOverload) or value.kwargs or other.kwargs:
        return False
    is_repeatable = torch.Tag.nondeterministic_seeded not in operator.tags
    return is_repeatable and len(value.args) == len(other.args) and all(map(_computes_the_same, value.args, other.args))


def _add_node(graph: fx.Graph, like: fx.Node, operator: Any, args: Sequence[Any], kwargs: Any = None) -> fx.Node:
    """Add a node that has the line and the module of another."""
    node = graph.call_function(operator, tuple(args), kwargs or {})
    node.meta = {**like.meta}
    values = fx.map_arg(tuple(args), lambda argument: argument.meta["val"])
    node.meta["val"] = operator(*values, **(kwargs or {}))
    return node
