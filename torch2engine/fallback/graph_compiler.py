"""One graph of torch.compile → what is called in its place.

Enters: a graph and its example inputs, as dynamo gives them. Leaves: a callable that answers by engines where there are
any, and by the graph itself in PyTorch where there are none. Separate because every graph decides for itself, and says
so in the record.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.wording import first_line, quote
from torch2engine.deployed.explanation import Obstacle
from torch2engine.exporter.functional_program import FunctionalProgram, export_functional_program
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.deployable_graph import DeployableGraph, part_record
from torch2engine.fallback.dispatch_modes import dispatch_modes_off
from torch2engine.fallback.functional_graph import (
    compile_functional_form,
    has_writes,
    written_placeholders,
)
from torch2engine.fallback.graph_layout import GraphLayout, read_layout
from torch2engine.fallback.inference_only import InferenceOnly, needs_gradients
from torch2engine.fallback.measured_cost import find_slow_engine
from torch2engine.fallback.part_call import DeployPart
from torch2engine.fallback.part_runner import OperatorsRefused, PartRunner, reason_for_pytorch
from torch2engine.fallback.partition import PartitionedGraph
from torch2engine.fallback.run_record import RunRecord, obstacle_of_break
from torch2engine.fallback.size_versions import Sizes, TooManySizesError, VersionsBySize, dynamic_axes
from torch2engine.fallback.tracking_engines import TrackingEngines
from torch2engine.fallback.view_results import ViewResults, shares_memory

__all__ = ["GraphCompiler"]


class GraphCompiler:
    """Makes the callables of dynamo's graphs.

    Args:
        options: how graphs become engines.
        deploy_part: makes the engine of a graph.
        record: takes what is found out.
    """

    def __init__(self, options: CompileOptions, deploy_part: DeployPart, record: RunRecord) -> None:
        self._options = options
        self._deploy_part = deploy_part
        self._record = record

    def compile(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one graph.

        Args:
            graph_module, example_inputs: as a backend of torch.compile gets them.
        """
        obstacle = obstacle_of_break(getattr(graph_module, "compile_subgraph_reason", None))
        if obstacle is not None:
            self._record.add_obstacle(obstacle)
        written = written_placeholders(graph_module.graph)
        placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        is_weight = [_is_registered(node) and node.name not in written for node in placeholders]
        if needs_gradients(example_inputs):
            return InferenceOnly(graph_module, graph_module)  # dynamo compiles another graph for calls without
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
            return self._in_pytorch(graph_module, "autocast is on around the call; turn it on inside forward instead")
        if written or (has_writes(graph_module.graph) and shares_memory(graph_module.graph)):
            answer = self._functional(graph_module, example_inputs, is_weight)
        else:
            answer = self._in_engines(graph_module, is_weight)
        return InferenceOnly(answer, graph_module)

    def _functional(
        self, graph_module: fx.GraphModule, example_inputs: Sequence[Any], is_weight: Sequence[bool]
    ) -> Callable[..., Any]:
        def compile_graph(functional: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            # Inputs that share memory are others in the functional graph; then the weights are inputs like all others.
            same_inputs = len(inputs) == len(is_weight)
            return self._in_engines(functional, is_weight if same_inputs else [False] * len(inputs))

        try:
            return compile_functional_form(graph_module, example_inputs, compile_graph)
        except Exception as error:  # whatever PyTorch can't make functional, it still runs
            return self._in_pytorch(graph_module, f"PyTorch can't separate its writes from the rest: {quote(error)}")

    def _in_engines(self, graph_module: fx.GraphModule, is_weight: Sequence[bool]) -> Callable[..., Any]:
        placeholders = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
        weights = [name for name, is_one in zip(placeholders, is_weight, strict=True) if is_one]
        views = ViewResults(graph_module)
        layout = read_layout(views.core, weights)
        if not any(result is Ellipsis for result in layout.results):
            return self._in_pytorch(graph_module, "no result but views of its inputs")
        graph = _GraphInEngines(self._make_runner(views.core, layout), self)
        return lambda *values: views.finish(graph(*values), values)

    def _make_runner(self, graph_module: fx.GraphModule, layout: GraphLayout) -> PartRunner:
        engines = TrackingEngines(graph_module, layout, self._deploy_part, self._options.weights == "compared")
        refusal = reason_for_pytorch(graph_module, layout, self._options.min_nodes)
        find_slow = _find_slow_engine if self._options.only_faster else None
        return PartRunner(graph_module, layout, engines, self._record, refusal, find_slow)

    def _in_pytorch(self, graph_module: fx.GraphModule, reason: str) -> Callable[..., Any]:
        part = part_record(graph_module.graph.nodes, "PyTorch", reason)
        self._record.parts.append(part)

        def answer(*values: Any) -> Any:
            with self._record.timed(part):
                return graph_module(*values)

        return answer

    def cut(
        self, runner: PartRunner, values: Sequence[Any], obstacles: Mapping[int, Obstacle], largest: Sizes
    ) -> ProgramInParts:
        """Cut a graph into parts.

        Args:
            runner: of the whole graph.
            values: of a call.
            obstacles: the operators that no engine takes, by their number in the graph.
            largest: the sizes up to which the parts are to hold; empty for the call's sizes alone.

        Raises:
            ExportError, InputError: the graph can't be exported.
        """
        layout = runner.layout
        weights, tensors = layout.split(values)
        part = DeployableGraph(runner.graph_module, layout, weights)
        axes = dynamic_axes(layout, layout.sizes(tensors), largest)
        with dispatch_modes_off(), undisturbed(part):
            program = export_functional_program(capture_call(part, tensors, axes)).program
        nodes = list(program.graph_module.graph.nodes)
        numbers = part.restore_sources(program.graph_module.graph)
        graph = PartitionedGraph(
            program.graph_module,
            [*program.weights, *program.constants],
            self._options.min_nodes,
            self._make_runner,
            self._record,
        )
        pairs = zip(nodes, numbers, strict=True)
        graph.refuse({node.name: obstacles[number] for node, number in pairs if number in obstacles})
        return ProgramInParts(program, graph, layout)


@dataclass(frozen=True)
class ProgramInParts:
    """A graph of torch.compile as a program that is cut into parts.

    Args:
        program: the whole graph.
        graph: the same, cut.
        layout: how the whole graph is called.
    """

    program: FunctionalProgram
    graph: PartitionedGraph
    layout: GraphLayout

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Answer a call of the whole graph."""
        weights, tensors = self.layout.split(values)
        outputs = self.graph(*self.program.values(weights, list(tensors.values())))
        return self.layout.assemble(outputs, tensors)


class _GraphInEngines:
    """A graph without writes: as a whole in an engine, or cut into parts where some operators have no engine."""

    def __init__(self, runner: PartRunner, compiler: GraphCompiler) -> None:
        self._runner = runner
        self._compiler = compiler
        self._lock = threading.Lock()
        self._obstacles: dict[int, Obstacle] = {}
        self._programs = VersionsBySize[ProgramInParts](runner.layout)

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        if not self._obstacles:
            try:
                return self._runner(*values)
            except OperatorsRefused as refused:
                self._obstacles = refused.obstacles
        return self._program_for(values)(*values)

    def _program_for(self, values: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
        layout = self._runner.layout
        sizes = layout.sizes(layout.split(values)[1])
        cut = partial(self._compiler.cut, self._runner, values, self._obstacles)
        with self._lock:
            try:
                return self._programs.find_or_make(sizes, cut)
            except (ExportError, InputError, TooManySizesError) as error:
                self._runner.leave_in_pytorch(f"it can't be cut into parts: {first_line(error)}")
                self._obstacles = {}
                return self._runner


def _find_slow_engine(runner: PartRunner, values: Sequence[Any]) -> str:
    tensor = next(value for value in values if isinstance(value, torch.Tensor))  # a graph without any has no engine
    return find_slow_engine(runner, values, tensor.device)


def _is_registered(node: fx.Node) -> bool:
    """Whether dynamo knows a placeholder as a parameter or buffer of a module, which it passes at every call."""
    return "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})
