"""What deploy() found, as a value that prints itself.

Enters: parity reports and seconds of each phase. Leaves: text and JSON. A room of its own so that stages measure and
only this one formats.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch2engine.parity.report import ParityReport
from torch2engine.precision.graph.multiply_adds import PrecisionReport
from torch2engine.precision.graph.outcome import PrecisionOutcome

__all__ = ["DeployReport", "Phases"]


@dataclass(frozen=True, kw_only=True)
class DeployReport:
    """The account of one deploy().

    Args:
        parity: PyTorch against ONNX Runtime, then PyTorch against the engine; that alone where the engine was found by
            what was asked, which the note "...come from the cache..." tells.
        seconds: wall time per phase, in order.
        precision: the arithmetic that answers, e.g. "fp32"; a half model's own dtype where that is lower.
        memory_bytes: device memory that the engine works in, weights not counted; 0 on the CPU.
        notes: what a user should know.
        lowering: how the graph came to a low precision; None where it was not changed.
        computed: what a low engine computes in, as TensorRT tells of its layers; None in float32 and of ONNX Runtime.
    """

    parity: tuple[ParityReport, ...]
    seconds: Mapping[str, float]
    precision: str
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()
    lowering: PrecisionOutcome | None = None
    computed: PrecisionReport | None = None

    @property
    def passed(self) -> bool:
        """True if there was a comparison and every one passed."""
        return bool(self.parity) and all(report.passed for report in self.parity)

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        memory = f", {self.memory_bytes / 2**20:.0f} MiB working memory" if self.memory_bytes else ""
        lines = [f"{self.precision}{memory}; {phases}"]
        lines += [] if self.lowering is None else [str(self.lowering)]
        lines += [] if self.computed is None else [f"engine: {self.computed.summary()}"]
        lines += map(str, self.parity)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "parity": [report.to_json() for report in self.parity],
            "seconds": dict(self.seconds),
            "precision": self.precision,
            "memory_bytes": self.memory_bytes,
            "notes": list(self.notes),
            "lowering": None if self.lowering is None else self.lowering.to_json(),
            "computed": None if self.computed is None else self.computed.to_json(),
        }


class Phases:
    """Wall time by phase, as deploy() goes along."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, when: bool = True) -> Generator[None]:
        """Time the body under `name`; leave no trace unless `when`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if when:
                self._seconds[name] = time.perf_counter() - start

    def report(
        self,
        parity: Sequence[ParityReport],
        precision: str,
        notes: Sequence[str],
        memory_bytes: int = 0,
        lowering: PrecisionOutcome | None = None,
        computed: PrecisionReport | None = None,
    ) -> DeployReport:
        """The report, with the phases so far."""
        return DeployReport(
            parity=tuple(parity),
            seconds=dict(self._seconds),
            precision=precision,
            memory_bytes=memory_bytes,
            notes=tuple(notes),
            lowering=lowering,
            computed=computed,
        )
