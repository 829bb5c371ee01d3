"""What runs where, and why: the record that graphs write while they run, and the explanation made from it.

Enters: findings of graphs and parts. Leaves: `Explanation`, a value that prints itself. Separate because graphs of
torch.compile and the parts of an exported program are explained in the same words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torch2engine.core.package import public

__all__ = ["Explanation", "GraphPartRecord", "Obstacle", "RunRecord", "obstacle_of_break", "time_calls"]

_OPERATOR = re.compile(r"`((?:aten|prims|torch)[\w.]+?)(?:\.default)?`")
_BRANCH = "generic_jump"  # dynamo's name of a Python branch whose condition is a tensor
_TIMED_CALLS = 3
_SHORT = 100  # characters of a reason in a table


@public
@dataclass(frozen=True)
class Obstacle:
    """One place in the user's code that no engine takes.

    Args:
        operator: PyTorch's name of the operator there; "branch" for a Python branch on a tensor's value.
        source: "FILE:LINE", or "" where torch doesn't know it.
        reason: a sentence.
        microseconds: its time in one call of the model, up to its end on the GPU; None if it was not measured.
    """

    operator: str
    source: str
    reason: str
    microseconds: float | None = None

    def __str__(self) -> str:
        time = "" if self.microseconds is None else f" ({self.microseconds:.0f} µs a call)"
        return f"{self.operator} at {self.source or 'an unknown line'}: {self.reason}{time}"


@dataclass
class GraphPartRecord:
    """The findings about one graph, or about one part of it.

    Args:
        runs_in: "PyTorch", or the title of the engine's runtime.
        operators: how many it computes.
        source: the user's lines from its first to its last operator.
        reason: why it stays in PyTorch, or "".
        seconds: the time of its calls while calls were timed.
        calls: the number of these calls.
    """

    runs_in: str
    operators: int
    source: str
    reason: str = ""
    seconds: float = 0.0
    calls: int = 0


@dataclass
class RunRecord:
    """Collects what graphs find out about themselves.

    Args:
        parts: of all graphs, in the order in which they were first called.
        obstacles: the places that no engine takes; each once.
        is_timed: whether calls of parts are timed, which waits for the GPU before and after each.
    """

    parts: list[GraphPartRecord] = field(default_factory=list[GraphPartRecord])
    obstacles: dict[tuple[str, str], Obstacle] = field(default_factory=dict[tuple[str, str], Obstacle])
    is_timed: bool = False

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
    frame = reason.user_stack[-1] if reason.user_stack else None
    source = f"{frame.filename}:{frame.lineno}" if frame is not None else ""
    text = str(reason.reason)
    if text.startswith(_BRANCH):
        return Obstacle("branch", source, "a Python branch on the value of a tensor")
    operator = _OPERATOR.search(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explanation = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation:")), "")
    return Obstacle(operator[1] if operator else "graph break", source, explanation or lines[0])


@public
@dataclass(frozen=True)
class Explanation:
    """Which parts of a model run in engines, which run in PyTorch, and why.

    Args:
        parts: graphs and parts of graphs, in the order in which they run.
        obstacles: the places in the user's code that no engine takes; each once.
        seconds: the time of one call of the whole model, with a wait for the end of each part.
    """

    parts: Sequence[GraphPartRecord]
    obstacles: Sequence[Obstacle]
    seconds: float

    @property
    def engine_share(self) -> float:
        """The share of the time that is spent in engines, between 0 and 1."""
        in_engines = sum(_seconds_of_call(part) for part in self.parts if part.runs_in != "PyTorch")
        return min(1.0, in_engines / self.seconds) if self.seconds else 0.0

    def __str__(self) -> str:
        engines = sum(part.runs_in != "PyTorch" for part in self.parts)
        lines = [f"{engines} of {len(self.parts)} parts in engines, {self.engine_share:.0%} of the time"]
        rows = [("part", "runs in", "operators", "µs", "time", "lines", "reason")]
        rows += [
            (
                str(number),
                part.runs_in,
                str(part.operators),
                f"{_seconds_of_call(part) * 1e6:.0f}",
                f"{_seconds_of_call(part) / self.seconds:.0%}" if self.seconds else "-",
                part.source,
                part.reason[:_SHORT],
            )
            for number, part in enumerate(self.parts)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        if self.obstacles:
            lines += ["in PyTorch, because no engine takes it:", *(f"  {obstacle}" for obstacle in self.obstacles)]
        return "\n".join(lines)


def _seconds_of_call(part: GraphPartRecord) -> float:
    return part.seconds / part.calls if part.calls else 0.0
