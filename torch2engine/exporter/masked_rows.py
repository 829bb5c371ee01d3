"""Writes at a mask, as in `y[mask] *= 2` → `torch.where`, which has a fixed size.

Enters: a program. Leaves: one in which no size depends on a mask at which rows are only read, computed and written.
Separate because PyTorch takes out the chosen rows, whose number depends on values, and an engine has no such sizes.
Where the rows between reading and writing are computed one by one, all of them can be computed instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public name
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from torch2engine.exporter.value_checks import erase_value_checks

__all__ = ["write_masks_as_where"]

_ATEN: Any = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.clone.default)
_WITH_INDEX = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)


@dataclass(frozen=True)
class _MaskIndex:
    """An index `[:, ..., mask]`.

    Args:
        mask: of bool.
        skipped: how many dimensions come before those of the mask.
        rank: of the mask.
        rest: how many dimensions come behind those of the mask.
    """

    mask: fx.Node
    skipped: int
    rank: int
    rest: int


def write_masks_as_where(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace writes at a mask; what can't be replaced stays.

    Returns:
        the program itself if it takes no rows by a mask, else another one without writes.
    """
    if not any(node.target in _WITH_INDEX and _mask_index(node) for node in program.graph.nodes):
        return program
    functional = program.run_decompositions({})  # nothing but writes is decomposed
    graph = functional.graph_module.graph
    for put in list(graph.nodes):
        if put.target == _ATEN.index_put.default:
            _replace(graph, put)
    erase_value_checks(functional)
    return functional


def _replace(graph: fx.Graph, put: fx.Node) -> None:
    index = _mask_index(put)
    target, _, value, *is_sum = put.args
    if index is None or any(is_sum) or put.kwargs:
        return
    with graph.inserting_before(put):
        rows = _Rows(graph, put, index).of(value)
        if rows is None:
            return
        mask: Any = index.mask
        for _ in range(index.rest):
            mask = _add(graph, put, _ATEN.unsqueeze.default, (mask, -1))
        chosen = _add(graph, put, _ATEN.where.self, (mask, rows, target))
    put.replace_all_uses_with(chosen)
    graph.erase_node(put)
    graph.eliminate_dead_code()


def _mask_index(node: fx.Node) -> _MaskIndex | None:
    """The index of an `index` or `index_put`, if it is a single mask behind whole dimensions."""
    indices: Any = node.args[1]
    *before, last = indices
    if any(item is not None for item in before) or not isinstance(last, fx.Node):
        return None
    mask = last.meta["val"]
    if mask.dtype != torch.bool:
        return None
    operand: Any = node.args[0]
    rest = operand.meta["val"].ndim - len(before) - mask.ndim
    return _MaskIndex(last, len(before), mask.ndim, rest)


class _Rows:
    """Finds for a tensor of the chosen rows the same tensor of all rows.

    Args:
        graph: where nodes are added, at the graph's place for them.
        put: the node that writes the rows; new nodes take its line.
        index: where it writes them.
    """

    def __init__(self, graph: fx.Graph, put: fx.Node, index: _MaskIndex) -> None:
        self.graph, self.put, self.index = graph, put, index
        self.found: dict[fx.Node, Any] = {}

    def of(self, value: Any) -> Any:
        """All rows of a value, or the value itself where it is the same for every row; None where there are none."""
        if not isinstance(value, fx.Node):
            return value
        if value not in self.found:
            self.found[value] = self._of_node(value)
        return self.found[value]

    def _of_node(self, node: fx.Node) -> Any:
        tensor = node.meta["val"]
        if not isinstance(tensor, torch.Tensor):
            return None
        if node.target == _ATEN.index.Tensor:
            read = _mask_index(node)
            if read is not None and self._is_same_place(read):
                return node.args[0]
        if tensor.ndim <= self.index.rest:
            return None if free_unbacked_symbols(tensor.shape) else node
        return self._computed(node) if _is_pointwise(node.target) else None

    def _is_same_place(self, read: _MaskIndex) -> bool:
        return read.skipped == self.index.skipped and _is_same(read.mask, self.index.mask)

    def _computed(self, node: fx.Node) -> Any:
        """The node's operator on all rows of its arguments."""
        arguments = [self.of(argument) for argument in node.args]
        if any(new is None and old is not None for new, old in zip(arguments, node.args, strict=True)):
            return None
        options = dict(node.kwargs)
        if any(isinstance(value, fx.Node) for value in options.values()):
            return None
        return _add(self.graph, node, node.target, tuple(arguments), options)


def _is_pointwise(operator: Any) -> bool:
    return isinstance(operator, OpOverload) and (torch.Tag.pointwise in operator.tags or operator in _COPIES)


def _is_same(value: Any, other: Any) -> bool:
    """Tell whether two arguments are computed in the same way from the same nodes."""
    if not (isinstance(value, fx.Node) and isinstance(other, fx.Node)):
        return type(value) is type(other) and value == other
    if value is other:
        return True
    operator: Any = value.target
    if operator is not other.target or not isinstance(operator, OpOverload) or value.kwargs or other.kwargs:
        return False
    is_repeatable = torch.Tag.nondeterministic_seeded not in operator.tags
    return is_repeatable and len(value.args) == len(other.args) and all(map(_is_same, value.args, other.args))


def _add(graph: fx.Graph, like: fx.Node, operator: Any, args: Sequence[Any], kwargs: Any = None) -> fx.Node:
    """Add a node that has the line and the module of another."""
    node = graph.call_function(operator, tuple(args), kwargs or {})
    node.meta = {**like.meta}
    values = fx.map_arg(tuple(args), lambda argument: argument.meta["val"])
    node.meta["val"] = operator(*values, **(kwargs or {}))
    return node
