"""The record that graphs write while they run, and the explanation made from it.

Enters: findings of graphs and parts. Leaves: an `Explanation`. Separate because graphs of torch.compile and the parts
of an exported program are explained in the same words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import Signature
from torch2engine.deployed.explanation import Explanation, GraphPartRecord, Obstacle
from torch2engine.fallback.deployable_graph import operators_in

__all__ = ["RunRecord", "obstacle_of_break", "obstacle_without_graph", "synchronized_seconds", "time_calls"]

_OPERATOR = re.compile(r"`((?:aten|prims|torch)[\w.]+?)(?:\.default)?`")
_BRANCHES = ("generic_jump", "Data-dependent branching")  # dynamo's words for a Python branch on a tensor's value
_TIMED_CALLS = 3


@dataclass
class RunRecord:
    """Collects what graphs find out about themselves.

    Args:
        parts: of all graphs, in the order in which they were first called.
        obstacles: the places that no engine takes; each once.
        engines: the signatures of all engines that torch.compile's graphs have deployed, in that order.
        is_timed: whether calls of parts are timed, which waits for the GPU before and after each.
        may_time_engines: whether a call may time an engine beside PyTorch, for those who asked for faster ones only.
    """

    parts: list[GraphPartRecord] = field(default_factory=list[GraphPartRecord])
    obstacles: dict[tuple[str, str], Obstacle] = field(default_factory=dict[tuple[str, str], Obstacle])
    engines: list[Signature] = field(default_factory=list[Signature])
    is_timed: bool = False
    may_time_engines: bool = True

    def add_obstacle(self, obstacle: Obstacle) -> None:
        """Note a place that no engine takes."""
        self.obstacles.setdefault((obstacle.operator, obstacle.source), obstacle)

    @contextmanager
    def timed(self, part: GraphPartRecord) -> Generator[None]:
        """Add the body's time to a part, if calls are timed."""
        if not self.is_timed:
            yield
            return
        start = synchronized_seconds()
        yield
        part.seconds += synchronized_seconds() - start
        part.calls += 1


def synchronized_seconds() -> float:
    """The time on the clock, after the GPU has finished all work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_calls(call: Callable[[], object], record: RunRecord) -> Explanation:
    """Call something whose parts write into a record, and explain it.

    Args:
        call: answers once; the first time it may deploy.
        record: of its parts.
    """
    call()
    record.is_timed = True
    start = synchronized_seconds()
    for _ in range(_TIMED_CALLS):
        call()
    seconds = (synchronized_seconds() - start) / _TIMED_CALLS
    record.is_timed = False
    parts = tuple(replace(part) for part in record.parts if part.calls)
    for part in record.parts:
        part.seconds = 0.0
        part.calls = 0
    return Explanation(parts, tuple(record.obstacles.values()), seconds)


def obstacle_of_break(reason: Any) -> Obstacle | None:
    """The place at which torch.compile ended a graph; None where the function ended.

    Args:
        reason: torch's GraphCompileReason.
    """
    if reason is None or not reason.graph_break:
        return None
    return _obstacle_at(str(reason.reason), reason.user_stack)


def obstacle_without_graph(function: Callable[..., object], sample: Inputs) -> Obstacle | None:
    """The place for which torch.compile left a whole function to Python, as it does for a break inside a loop.

    Args:
        function: of which torch.compile has made no graph; a module or a function.
        sample: a call of it.

    Returns:
        None for a function without operators.
    """
    # Only here: torch._dynamo takes a second to load, and every deploy() loads this file.
    from torch._dynamo.eval_frame import remove_from_cache
    from torch._dynamo.exc import Unsupported

    graphs: list[fx.Graph] = []

    def keep(graph_module: fx.GraphModule, example_inputs: object) -> Callable[..., object]:
        graphs.append(graph_module.graph)
        return graph_module.forward

    remove_from_cache(function)  # torch remembers that it gave this function up
    try:
        torch.compile(function, backend=keep, fullgraph=True)(*sample.args, **sample.kwargs)
    except Unsupported as error:
        return _obstacle_at(str(error.msg), error.real_stack)
    except RuntimeError:  # torch has looked at no code of the user's
        return None
    reason = "torch.compile finds no graph, as with a break inside a loop; with fullgraph=True it finds one"
    return Obstacle("graph break", "", reason) if any(map(operators_in, graphs)) else None


def _obstacle_at(text: str, user_stack: Any) -> Obstacle:
    """The obstacle of a graph break.

    Args:
        text: torch's reason.
        user_stack: torch's frames of the user's code, from the outermost; or None.
    """
    frame = user_stack[-1] if user_stack else None
    source = f"{frame.filename}:{frame.lineno}" if frame is not None else ""
    if text.startswith(_BRANCHES):
        return Obstacle("branch", source, "a Python branch on the value of a tensor")
    operator = _OPERATOR.search(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explanation = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation:")), "")
    return Obstacle(operator[1] if operator else "graph break", source, explanation or lines[0])
