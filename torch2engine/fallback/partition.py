"""A functional graph cut into parts for engines and operators for PyTorch.

Enters: a graph, and the operators that no engine takes. Leaves: a graph that calls one runner for each part, and the
other operators itself. Separate because what the exporter and the parser accept is known only when a part is deployed:
then the graph is cut again, and parts that have not changed keep their engines.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public name
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner, Partition
from torch.fx.passes.operator_support import OperatorSupportBase

from torch2engine.deployed.explanation import GraphPartRecord, Obstacle
from torch2engine.fallback.deployable_graph import operator_of, part_record, source_of
from torch2engine.fallback.graph_layout import fake_value, is_tensor, read_layout
from torch2engine.fallback.part_runner import OperatorsRefused, PartRunner
from torch2engine.fallback.run_record import RunRecord

__all__ = ["CutPart", "MakeRunner", "PartitionedGraph", "operators_in_pytorch", "placement", "repeat_cut"]

MakeRunner = Callable[[fx.GraphModule, Any], PartRunner]
"""A part with its layout → what answers it."""

_PREFIX = "part_"
_TOO_FEW = "too few operators for an engine of their own"


class _RefusedInPart(Exception):
    """The engine of one part refuses operators: name in the whole graph -> obstacle."""

    def __init__(self, obstacles: Mapping[str, Obstacle]) -> None:
        super().__init__(", ".join(obstacles))
        self.obstacles = dict(obstacles)


class _Part(nn.Module):
    """A runner in the place of its operators.

    Args:
        runner: answers the part.
    """

    def __init__(self, runner: PartRunner) -> None:
        super().__init__()
        self.runner = runner
        graph = runner.graph_module.graph
        self._node_names = [node.name for node in graph.nodes]
        self._returns_tuple = isinstance(graph.output_node().args[0], (tuple, list))

    def forward(self, *values: Any) -> Any:
        """Answer the part's call."""
        try:
            results = self.runner(*values)
        except OperatorsRefused as refused:
            named = {self._node_names[number]: obstacle for number, obstacle in refused.obstacles.items()}
            raise _RefusedInPart(named) from refused
        return results if self._returns_tuple else results[0]

    __call__ = forward  # without the hooks of a module, which nobody has set here


class _EngineOperators(OperatorSupportBase):
    """The operators that may be part of an engine: those that compute dense tensors of real numbers."""

    def __init__(self, refused: Collection[str]) -> None:
        self._refused = refused

    def is_node_supported(self, submodules: Mapping[str, nn.Module], node: fx.Node) -> bool:
        """Whether an engine may compute a node."""
        if node.op != "call_function" or node.name in self._refused:
            return False
        if node.target is operator.getitem:
            producer = node.args[0]
            return isinstance(producer, fx.Node) and self.is_node_supported(submodules, producer)
        are_tensors = [isinstance(result, torch.Tensor) for result in _values_of(node)]
        return bool(are_tensors) and all(are_tensors) and not _refusal_of_kind(node)


def _refusal_of_kind(node: fx.Node) -> str:
    """The reason for which no engine takes a node, whatever its operator's translation is; "" if there is none."""
    tensors = [value for one in (node, *node.all_input_nodes) for value in _values_of(one)]
    if any(isinstance(tensor, torch.Tensor) and tensor.is_complex() for tensor in tensors):
        return "complex numbers, which are no inputs or outputs of an engine"
    if isinstance(node.target, OpOverload):
        return ""
    is_operator = bool(node.args) and isinstance(node.args[0], OpOverload)
    return "no ONNX function" if is_operator else "control flow, which only an engine of the whole model takes"


def _values_of(node: fx.Node) -> Sequence[Any]:
    value = fake_value(node)
    return cast("Sequence[Any]", value) if isinstance(value, (tuple, list)) else (value,)


def _refused_kinds(graph: fx.Graph) -> dict[str, Obstacle]:
    """The operators on tensors that no engine takes, whatever their translation is."""
    reasons = {
        node: _refusal_of_kind(node)
        for node in graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
        if any(isinstance(result, torch.Tensor) for result in _values_of(node))
    }
    return {
        node.name: Obstacle(operator_of(node), source_of(node), reason) for node, reason in reasons.items() if reason
    }


@dataclass(frozen=True)
class CutPart:
    """One part of a graph.

    Args:
        nodes: the names of its operators, in the graph's order.
        runner: answers it.
    """

    nodes: tuple[str, ...]
    runner: PartRunner


class PartitionedGraph:
    """Answers a functional graph by engines where these exist, and by PyTorch elsewhere. Threads may share it.

    Args:
        graph_module: the graph, with the fake value of every node.
        weights: names of the placeholders that take parameters, buffers and constants.
        min_nodes: the least number of operators that are worth an engine.
        make_runner: makes what answers a part.
        record: takes the operators that stay in PyTorch.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        weights: Collection[str],
        min_nodes: int,
        make_runner: MakeRunner,
        record: RunRecord,
    ) -> None:
        self._graph_module = graph_module
        self._weights = frozenset(weights)
        self._min_nodes = min_nodes
        self._make_runner = make_runner
        self._record = record
        self._refused: dict[str, Obstacle] = {}
        self._parts: dict[frozenset[str], _Part] = {}
        self._lock = threading.Lock()
        self._cut: fx.GraphModule | None = None
        self.refuse(_refused_kinds(graph_module.graph))

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Answer a call. The first calls cut the graph, until every part has an engine or a reason for having none."""
        while True:
            cut = self._cut_graph()
            try:
                return tuple(cut(*values))
            except _RefusedInPart as refused:  # the graph writes into no tensor, so the call may start again
                self.refuse(refused.obstacles)

    def refuse(self, obstacles: Mapping[str, Obstacle]) -> None:
        """Leave operators in PyTorch from now on.

        Args:
            obstacles: by name of the node.
        """
        with self._lock:
            self._refused |= obstacles
            for obstacle in obstacles.values():
                self._record.add_obstacle(obstacle)
            self._cut = None

    def leave_slow_parts(self, find: Callable[[fx.GraphModule, Mapping[str, PartRunner]], Mapping[str, str]]) -> None:
        """Leave parts to PyTorch whose engines are not worth it.

        Args:
            find: the cut program, and what answers each part by the name of its submodule → the reasons, by name.
        """
        cut = self._cut_graph()
        runners = {name: part.runner for name, part in cut.named_children() if isinstance(part, _Part)}
        for name, reason in find(cut, runners).items():
            runners[name].leave_in_pytorch(reason)

    def _cut_graph(self) -> fx.GraphModule:
        with self._lock:
            if self._cut is None:
                self._cut = self._cut_anew()
            return self._cut

    def parts(self) -> list[CutPart]:
        """The parts of the present cut."""
        cut = self._cut_graph()
        return [
            CutPart(part_nodes(self._graph_module, names), part.runner)
            for names, part in self._parts.items()
            if any(module is part for module in cut.children())
        ]

    def _cut_anew(self) -> fx.GraphModule:
        cut = copy.deepcopy(self._graph_module)
        partitioner = CapabilityBasedPartitioner(
            cut, _EngineOperators(self._refused), allows_single_node_partition=True
        )
        proposed = partitioner.propose_partitions()
        worthwhile = [partition for partition in proposed if self._is_worthwhile(partition)]
        names = [frozenset(node.name for node in partition.nodes) for partition in worthwhile]
        _fuse(cut, [part_nodes(cut, part) for part in names])
        for number, in_part in enumerate(names):
            name = f"{_PREFIX}{number}"
            if in_part not in self._parts:
                self._parts[in_part] = _make_part(cut.get_submodule(name), self._weights, self._make_runner)
            setattr(cut, name, self._parts[in_part])
        return cut

    def _is_worthwhile(self, partition: Partition) -> bool:
        return sum(is_tensor(node) for node in partition.nodes) >= self._min_nodes


def _make_part(graph_module: Any, weights: Collection[str], make_runner: MakeRunner) -> _Part:
    placeholders = {node.name for node in graph_module.graph.nodes if node.op == "placeholder"}
    return _Part(make_runner(graph_module, read_layout(graph_module, placeholders & frozenset(weights))))


def part_nodes(graph_module: fx.GraphModule, names: Collection[str]) -> tuple[str, ...]:
    """The names of a part's operators in the graph's order; so equal parts are equal graphs."""
    return tuple(node.name for node in graph_module.graph.nodes if node.name in names)


def _fuse(graph_module: fx.GraphModule, parts: Sequence[Sequence[str]]) -> None:
    """Put one submodule in the place of each part's operators."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    partitions = [Partition(number, [nodes[name] for name in names]) for number, names in enumerate(parts)]
    partitioner = CapabilityBasedPartitioner(graph_module, _EngineOperators(()), allows_single_node_partition=True)
    partitioner.fuse_partitions(partitions, prefix=_PREFIX)
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            _name_inputs(graph_module, node)


def _name_inputs(graph_module: fx.GraphModule, part: fx.Node) -> None:
    """Give a part's inputs the names of the operators that make them, whatever part these are in.

    torch names an input after the result of another part if that part was fused before; else after the operator. An
    engine knows its inputs by name, and is kept when other parts change.

    Args:
        graph_module: the cut graph.
        part: the call of the part.
    """
    inside = graph_module.get_submodule(str(part.target))
    assert isinstance(inside, fx.GraphModule)
    placeholders = [node for node in inside.graph.nodes if node.op == "placeholder"]
    for placeholder, argument in zip(placeholders, part.args, strict=True):
        assert isinstance(argument, fx.Node)
        placeholder.name = placeholder.target = _origin(graph_module, argument)
    inside.recompile()


def _origin(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """The name of the operator of the whole graph that a node of the cut graph stands for."""
    source, number = node, 0
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module":
        source, number = node.args[0], cast("int", node.args[1])
    if source.op != "call_module":
        return node.name
    inside = graph_module.get_submodule(str(source.target))
    assert isinstance(inside, fx.GraphModule)
    made = inside.graph.output_node().args[0]
    result = made[number] if isinstance(made, (tuple, list)) else made
    assert isinstance(result, fx.Node)
    return result.name


def repeat_cut(
    graph_module: fx.GraphModule,
    weights: Collection[str],
    parts: Sequence[Sequence[str]],
    make_runner: Callable[[int, fx.GraphModule, Any], PartRunner],
) -> fx.GraphModule:
    """Cut a graph in the same way as an earlier one.

    Args:
        graph_module: the graph; it is copied.
        weights: names of the placeholders that take parameters, buffers and constants.
        parts: the names of each part's operators, in the graph's order.
        make_runner: a part's number, its graph and its layout → what answers it.

    Raises:
        KeyError: an operator is not in the graph.
    """
    cut = copy.deepcopy(graph_module)
    _fuse(cut, parts)
    for number in range(len(parts)):
        name = f"{_PREFIX}{number}"
        setattr(cut, name, _make_part(cut.get_submodule(name), weights, partial(make_runner, number)))
    return cut


def placement(cut: fx.GraphModule, obstacles: Iterable[Obstacle]) -> list[GraphPartRecord]:
    """What runs where in a cut graph, in the order of its operators.

    Args:
        cut: its parts have answered a call.
        obstacles: the operators that no engine takes.
    """
    reasons = {(place.operator, place.source): f"{place.operator}: {place.reason}" for place in obstacles}

    def in_pytorch(nodes: Sequence[fx.Node]) -> GraphPartRecord:
        found = dict.fromkeys(reasons.get((operator_of(node), source_of(node)), "") for node in nodes)
        return part_record(nodes, "PyTorch", "; ".join(filter(None, found)) or _TOO_FEW)

    records: list[GraphPartRecord] = []
    between: list[fx.Node] = []  # since the last part
    for node in cut.graph.nodes:
        part = cut.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(part, _Part):
            between.append(node)
            continue
        records += [in_pytorch(between), part.runner.part]
        between = []
    return [record for record in (*records, in_pytorch(between)) if record.operators]


def operators_in_pytorch(cut: fx.GraphModule) -> Iterator[fx.Node]:
    """The operators of a cut graph that PyTorch runs: those outside of all parts, and those of parts without an engine.

    Args:
        cut: of `repeat_cut`.
    """
    for node in cut.graph.nodes:
        part = cut.get_submodule(str(node.target)) if node.op == "call_module" else None
        if part is None and node.op == "call_function":
            yield node
        elif isinstance(part, _Part) and part.runner.refusal:
            yield from (one for one in part.runner.graph_module.graph.nodes if one.op == "call_function")
