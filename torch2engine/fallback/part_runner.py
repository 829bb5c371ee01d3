"""One graph, answered by its engines or by PyTorch.

Enters: the values of a call, in the order of the graph's placeholders. Leaves: its results. Separate because graphs of
torch.compile, and the parts that such a graph or an exported program is cut into, are all run in this way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import fx

from torch2engine.deployed.explanation import Obstacle
from torch2engine.fallback.deployable_graph import operators_in, part_record
from torch2engine.fallback.graph_layout import GraphLayout, UnknownSizeError
from torch2engine.fallback.part_call import LeftInPyTorch
from torch2engine.fallback.run_record import RunRecord

__all__ = ["OperatorsRefused", "PartEngines", "PartRunner", "reason_for_pytorch"]

_logger = logging.getLogger(__name__)


class PartEngines(Protocol):
    """Answers a graph by engines."""

    @property
    def runtime(self) -> str:
        """The title of the runtime that has answered; "" before the first call."""
        ...

    def answer_known(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...] | None:
        """Answer a call, given by all its values, that needs no look at sizes and weights; None for any other call."""
        ...

    def __call__(self, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Answer a call; both arguments are by placeholder.

        Raises:
            LeftInPyTorch: no engine answers it.
        """
        ...


FindSlowEngine: TypeAlias = "Callable[[PartRunner, Sequence[Any]], str]"


class OperatorsRefused(Exception):
    """No engine takes some operators of a graph; the other operators may still form an engine.

    Args:
        obstacles: the operators, by their number in the graph.
    """

    def __init__(self, obstacles: Mapping[int, Obstacle]) -> None:
        super().__init__(", ".join(map(str, obstacles.values())))
        self.obstacles = dict(obstacles)


class PartRunner:
    """Answers a graph that writes into none of its inputs. Threads may share it.

    Args:
        graph_module: the graph, which answers in PyTorch where there is no engine.
        layout: how it is called.
        engines: answer where they can.
        record: takes what is found out.
        refusal: why PyTorch answers every call, or "".
        find_slow_engine: asked once, at the first call that an engine has answered while the record lets engines be
            timed: this runner and the call's values → why PyTorch answers from then on, or "". None asks nothing.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        layout: GraphLayout,
        engines: PartEngines,
        record: RunRecord,
        refusal: str,
        find_slow_engine: FindSlowEngine | None = None,
    ) -> None:
        self.graph_module = graph_module
        self.layout = layout
        self._record = record
        self.engines = engines
        self.refusal = refusal
        self._find_slow_engine = find_slow_engine
        self.part = part_record(graph_module.graph.nodes)
        self._returns_tensors_only = all(result is Ellipsis for result in layout.results)

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Answer a call.

        Raises:
            OperatorsRefused: at the first call, if refused operators are the reason for having no engine.
        """
        if self._returns_tensors_only and not self.refusal and not self._record.is_timed:
            known = self.engines.answer_known(values)
            if known is not None:
                return known
        with self._record.timed(self.part):
            if not self.refusal:
                weights, tensors = self.layout.split(values)
                try:
                    outputs = self.engines(weights, tensors)
                except LeftInPyTorch as left:
                    if left.obstacles:
                        raise OperatorsRefused(left.obstacles) from left
                    if left.is_final:
                        self.leave_in_pytorch(left.reason)
                    self._record_place(left.reason, "PyTorch")
                else:
                    self._record_place("", self.engines.runtime)
                    answer = self.layout.assemble(outputs, tensors)
                    self._leave_slow_engine(values)
                    return answer
            else:
                self._record_place(self.refusal, "PyTorch")
            results: Any = self.graph_module(*values)
            if isinstance(results, torch.Tensor):  # a part may return one tensor without a tuple around it
                return (results,)
            return tuple(results)

    def _leave_slow_engine(self, values: Sequence[Any]) -> None:
        """Answer later calls in PyTorch if the engine is measured to be slower."""
        if not self._record.may_time_engines:
            return
        find, self._find_slow_engine = self._find_slow_engine, None
        if find is not None and (reason := find(self, values)):
            self.leave_in_pytorch(reason)
            self._record_place(reason, "PyTorch")

    def leave_in_pytorch(self, reason: str) -> None:
        """Answer every later call in PyTorch.

        Args:
            reason: a sentence for people.
        """
        self.refusal = reason

    def _record_place(self, reason: str, runs_in: str) -> None:
        """Write into the record where the graph runs, when that is new."""
        part = self.part
        if not part.runs_in:
            self._record.parts.append(part)
        if runs_in != part.runs_in:
            part.runs_in = runs_in
            part.reason = reason
            _logger.info("%s in %s%s", part.source, runs_in, f": {reason}" if reason else "")


def reason_for_pytorch(graph_module: fx.GraphModule, layout: GraphLayout, min_nodes: int) -> str:
    """The reason, known before any call, why a graph stays in PyTorch; "" if there is no such reason.

    Args:
        graph_module: the graph.
        layout: how it is called.
        min_nodes: the least number of operators that are worth an engine.
    """
    if operators_in(graph_module.graph) < min_nodes:
        return f"fewer operators than min_nodes = {min_nodes}"
    if not layout.tensors:
        return "no tensor as an input"
    try:
        layout.check_numbers()
    except UnknownSizeError as error:
        return f"a number that changes from call to call and is no size of an input ({error})"
    return ""
