"""Results that are views, taken out of a graph: PyTorch makes them of what the rest of the graph returns.

Enters: a graph that writes into nothing. Leaves: the graph without such results, and what puts them back. Separate
because an engine's results are fresh tensors. A later write into such a tensor would not reach the viewed tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from torch2engine.fallback.graph_layout import fake_value, results_of

__all__ = ["ViewResults", "shares_memory"]


def shares_memory(graph: fx.Graph) -> bool:
    """Whether a result is a view of an input or of another result."""
    return bool(_shared_memory(results_of(graph), _memory_owners(graph)))


class ViewResults:
    """A graph in two: `core`, whose results share no memory, and the views that PyTorch makes afterwards.

    Args:
        graph_module: the graph, with the fake value of every node.

    Attributes:
        core: the graph without the views; the same graph where there are none.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        graph = graph_module.graph
        results = results_of(graph)
        owners = _memory_owners(graph)
        shared = _shared_memory(results, owners)
        self._is_view = [_memory(result) in shared for result in results]
        if not shared:
            self.core = graph_module
            return
        kept = [result for result, is_view in zip(results, self._is_view, strict=True) if not is_view]
        views = [result for result, is_view in zip(results, self._is_view, strict=True) if is_view]
        nodes = _view_nodes(views, shared, set(owners.values()))
        given = [node for node in graph.nodes if node not in nodes and any(user in nodes for user in node.users)]
        given += [view for view in dict.fromkeys(views) if view not in nodes and view not in given]
        from_core = [node for node in given if node.op != "placeholder"]
        self._kept = len(kept)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._inputs = [placeholders.index(node) for node in given if node.op == "placeholder"]
        self.core = _with_results(graph_module, [*kept, *from_core])
        self._views = _graph_of_views(
            graph_module, [*from_core, *(placeholders[i] for i in self._inputs)], nodes, views
        )

    def finish(self, core_results: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        """All results of a call.

        Args:
            core_results: of `core`.
            values: that the graph was called with.
        """
        if not any(self._is_view):
            return tuple(core_results)
        kept = iter(core_results[: self._kept])
        views = iter(self._views(*core_results[self._kept :], *(values[index] for index in self._inputs)))
        return tuple(next(views) if is_view else next(kept) for is_view in self._is_view)


def _memory(node: object) -> int | None:
    """An identifier of the memory of a node's tensor; None for a value that is not a tensor."""
    value = fake_value(node) if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    storage: Any = value.untyped_storage()
    return storage._cdata  # fake tensors have no address


def _memory_owners(graph: fx.Graph) -> dict[int, fx.Node]:
    """Memory -> the first node whose tensor lies in it."""
    owners: dict[int, fx.Node] = {}
    for node in graph.nodes:
        if (memory := _memory(node)) is not None:
            owners.setdefault(memory, node)
    return owners


def _shared_memory(results: Sequence[Any], owners: dict[int, fx.Node]) -> set[int]:
    """The memory of results that lie in an input, or in which several results lie."""
    memories = [memory for memory in map(_memory, results) if memory is not None]
    return {memory for memory in memories if memories.count(memory) > 1 or owners[memory].op == "placeholder"}


def _view_nodes(views: Iterable[fx.Node], shared: Collection[int], owners: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes that lead from the owners of memory to the views: views of it, and the numbers that they take."""
    nodes: set[fx.Node] = set()
    waiting = list(views)
    while waiting:
        node = waiting.pop()
        memory = _memory(node)
        is_step = node.op != "placeholder" and node not in owners and (memory is None or memory in shared)
        if is_step and node not in nodes:
            nodes.add(node)
            waiting.extend(node.all_input_nodes)
    return nodes


def _with_results(graph_module: fx.GraphModule, results: Sequence[Any]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(graph_module.graph, copies)
    graph.output(tuple(copies[result] if isinstance(result, fx.Node) else result for result in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph)


def _graph_of_views(
    graph_module: fx.GraphModule, given: Sequence[fx.Node], nodes: Collection[fx.Node], views: Sequence[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}
    for node in graph_module.graph.nodes:
        if node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[view] for view in views))
    return fx.GraphModule(graph_module, graph)
