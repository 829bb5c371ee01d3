"""The answer of every `explain`: the parts of a model, where and how long each runs, and what could be faster.

Enters: the parts of a model with their times, and findings. Leaves: an `Explanation`, a value that prints itself.
Separate because whole engines, models in parts and graphs of torch.compile are explained in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from torch2engine.core.finding import Finding
from torch2engine.core.package import public
from torch2engine.core.wording import aligned

__all__ = ["Explanation", "GraphPartRecord", "Obstacle"]

_SHORT = 240  # characters of a reason in a table: enough for the first output that is off, with all its figures


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
        operators: how many it computes; 0 where that is not known, as for a whole engine.
        source: the user's lines from its first to its last operator.
        reason: why it stays in PyTorch, or "".
        seconds: the time of its calls while calls were timed.
        calls: the number of these calls.
        modules: paths of the torch modules that it computes, each once; none where that is not known.
    """

    runs_in: str
    operators: int
    source: str
    reason: str = ""
    seconds: float = 0.0
    calls: int = 0
    modules: tuple[str, ...] = ()

    def summary(self) -> str:
        """The place, the number of operators and the reason in a line."""
        lines = f" of {self.source}" if self.source else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.operators} operators{lines} in {self.runs_in}{reason}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphPartRecord:
        """Read what `dataclasses.asdict` gave."""
        return cls(
            runs_in=str(data["runs_in"]),
            operators=int(data["operators"]),
            source=str(data["source"]),
            reason=str(data["reason"]),
            seconds=float(data["seconds"]),
            calls=int(data["calls"]),
            modules=tuple(map(str, data["modules"])),
        )


@public
@dataclass(frozen=True)
class Explanation:
    """The parts of a model that run in engines, those that run in PyTorch, and the reasons.

    Args:
        parts: graphs and parts of graphs, in the order in which they run.
        obstacles: the places in the user's code that no engine takes; each once.
        seconds: the time of one call of the whole model, with a wait for the end of each part.
        findings: what makes it slower than it could be, each with what to try.

    >>> explanation = t2e.explain(module, sample)
    >>> [part.runs_in for part in explanation.parts], explanation.obstacles
    (['ONNX Runtime'], ())
    """

    parts: Sequence[GraphPartRecord]
    obstacles: Sequence[Obstacle]
    seconds: float
    findings: Sequence[Finding] = ()

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
                str(part.operators or "-"),
                f"{_seconds_of_call(part) * 1e6:.0f}",
                f"{_seconds_of_call(part) / self.seconds:.0%}" if self.seconds else "-",
                part.source,
                shorten(part.reason, _SHORT, placeholder=" …"),
            )
            for number, part in enumerate(self.parts)
        ]
        lines += aligned(rows)
        if self.obstacles:
            lines += ["in PyTorch, because no engine takes it:", *(f"  {obstacle}" for obstacle in self.obstacles)]
        return "\n".join([*lines, *map(str, self.findings)])

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "seconds": self.seconds,
            "engine_share": self.engine_share,
            "parts": [asdict(part) for part in self.parts],
            "obstacles": [asdict(obstacle) for obstacle in self.obstacles],
            "findings": [finding.to_json() for finding in self.findings],
        }


def _seconds_of_call(part: GraphPartRecord) -> float:
    return part.seconds / part.calls if part.calls else 0.0
