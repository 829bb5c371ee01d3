"""An fx graph → a module of named tensors that the stages of deploy() take like any other.

Enters: a GraphModule of torch.compile, or a part of an exported program. Leaves: `DeployableGraph`. Its forward takes
the live tensors by name, weights are its parameters and buffers, and sizes follow from shapes. Separate because an
error of a later stage is about some node, and only this file knows how to find that node again.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.fx.traceback as node_metadata
from torch import fx, nn
from torch._ops import (  # no public names
    HigherOrderOperator,  # pyright: ignore[reportPrivateImportUsage]  # as above
    OpOverload,  # pyright: ignore[reportPrivateImportUsage]  # as above
    OpOverloadPacket,  # pyright: ignore[reportPrivateImportUsage]  # as above
)
from torch.utils import _pytree as pytree

from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.errors import UnsupportedNode
from torch2engine.deployed.explanation import GraphPartRecord, Obstacle
from torch2engine.exporter.flat_module import module_path
from torch2engine.fallback.graph_layout import GraphLayout, is_tensor, results_of

__all__ = ["DeployableGraph", "operator_of", "operators_in", "part_record", "source_of"]

# A frame of this file is a node's number in its graph, for as long as the stages of deploy() work on the graph.
_MARK = "torch2engine-node"
_MARKED = re.compile(rf"^{_MARK}:(\d+)$")
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_CALLS = ("call_function", "call_method", "call_module")


def source_of(node: fx.Node) -> str:
    """ "FILE:LINE" of the user's code that a node comes from, or ""."""
    frames = [(file, int(line)) for file, line in _FRAME.findall(node.meta.get("stack_trace") or "")]
    return innermost_user_frame(frames)


def operator_of(node: fx.Node) -> str:
    """The operator of a node as PyTorch calls it, e.g. "aten.nonzero" or "conv2d"."""
    target = node.target
    if isinstance(target, HigherOrderOperator) and node.args and isinstance(node.args[0], OpOverload):
        target = node.args[0]  # an operator that writes into its arguments, in a form without writes
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return str(cast("object", target)).removesuffix(".default")
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def operators_in(graph: fx.Graph) -> int:
    """How many tensors a graph computes."""
    return sum(node.op in _CALLS and is_tensor(node) for node in graph.nodes)


def part_record(nodes: Iterable[fx.Node], runs_in: str = "", reason: str = "") -> GraphPartRecord:
    """Describe some nodes of a graph: how many operators, the user's lines, the torch modules.

    Args:
        nodes: in the graph's order.
        runs_in, reason: as for `GraphPartRecord`.
    """
    calls = [node for node in nodes if node.op in _CALLS]
    operators = [node for node in calls if is_tensor(node)]
    return GraphPartRecord(runs_in, len(operators), _lines_of(calls), reason, modules=_modules_of(operators))


def _lines_of(calls: Iterable[fx.Node]) -> str:
    """The user's lines from the first to the last operator, e.g. "model.py:12-20"."""
    sources = [source_of(node) for node in calls]
    places = [source.rpartition(":") for source in sources if source]
    if not places:
        return ""
    files = list(dict.fromkeys(file for file, _, _ in places))
    numbers = [int(line) for file, _, line in places if file == files[0]]
    lines = f"{min(numbers)}-{max(numbers)}" if len(set(numbers)) > 1 else str(numbers[0])
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    return f"{Path(files[0]).name}:{lines}{more}"


def _modules_of(operators: Iterable[fx.Node]) -> tuple[str, ...]:
    """The paths of the torch modules of operators, each once, as far as torch.export knows them."""
    stacks = [node.meta.get("nn_module_stack") for node in operators]
    paths = [module_path(str(list(stack.values())[-1][0])) for stack in stacks if stack]
    return tuple(dict.fromkeys(filter(None, paths)))


def _chooses(node: fx.Node) -> bool:
    """Whether a node makes integers or bools of floating values: a comparison, a maximum's place, a sort, a cast.

    Values that differ by rounding alone may lead to another choice.
    """
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    made = pytree.tree_leaves(node.meta.get("val"))
    taken = [value for one in node.all_input_nodes for value in pytree.tree_leaves(one.meta.get("val"))]
    is_discrete = any(isinstance(value, torch.Tensor) and not value.is_floating_point() for value in made)
    return is_discrete and any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in taken)


class DeployableGraph(nn.Module):
    """A graph as a module: `part(**tensors)` gives its results that are tensors.

    Args:
        graph_module: the graph; it is copied, and shares the modules that it calls.
        layout: how it is called.
        weights: by placeholder, the user's own tensors.
    """

    def __init__(self, graph_module: fx.GraphModule, layout: GraphLayout, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(graph_module.graph, copies)
        graph.output(tuple(copies[result] for result in results_of(graph_module.graph) if is_tensor(result)))
        self._layout = layout
        self._operators = tuple(map(operator_of, graph.nodes))
        self._sources = tuple(map(source_of, graph.nodes))
        self._choices = tuple(number for number, node in enumerate(graph.nodes) if _chooses(node))
        for number, node in enumerate(graph.nodes):
            node.meta = {"stack_trace": f'  File "{_MARK}", line {number}, in forward\n    {node.name}\n'}
        self._graph_module = fx.GraphModule(graph_module, graph)
        for name, weight in weights.items():
            if isinstance(weight, nn.Parameter):
                self.register_parameter(name, weight)
            else:
                self.register_buffer(name, weight)

    def forward(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph node by node, so that a tracer knows at which node it is."""
        layout = self._layout
        values: dict[str, object] = {**tensors}
        values |= {name: getattr(self, name) for name in layout.weights}
        values |= {name: layout.number(number, tensors) for name, number in layout.numbers.items()}
        with node_metadata.preserve_node_meta():
            return tuple(fx.Interpreter(self._graph_module).run(*(values[name] for name in layout.placeholders)))

    def obstacles_of(self, nodes: Iterable[UnsupportedNode]) -> dict[int, Obstacle]:
        """The nodes of the graph that an error of a stage names, by their number in the graph."""
        found: dict[int, Obstacle] = {}
        for node in nodes:
            if mark := _MARKED.match(node.source):
                number = int(mark[1])
                found.setdefault(number, Obstacle(self._operators[number], self._sources[number], node.reason))
        return found

    def choices(self, reason: str) -> dict[int, Obstacle]:
        """The operators that choose between floating values, by their number in the graph.

        Args:
            reason: why no engine takes them.
        """
        return {number: Obstacle(self._operators[number], self._sources[number], reason) for number in self._choices}

    def restore_sources(self, traced: fx.Graph) -> list[int]:
        """Write the user's lines on the nodes of a graph that was traced from this part.

        Returns:
            for each node of `traced` the number of this graph's node that it comes from; -1 if it comes from none.
        """
        numbers: list[int] = []
        for node in traced.nodes:
            mark = _MARKED.match(source_of(node))
            numbers.append(int(mark[1]) if mark else -1)
            if mark:
                file, _, line = self._sources[int(mark[1])].rpartition(":")
                node.meta["stack_trace"] = f'  File "{file}", line {line}, in forward\n' if file else ""
        return numbers
