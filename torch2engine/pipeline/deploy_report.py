"""The report of one deploy(): a builder that collects it, and the value that prints itself.

Enters: comparisons, notes, and the seconds of each phase, as deploy() goes along. Leaves: a `DeployReport`, with text
and JSON. Separate because the steps only measure, and this file alone formats.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2engine.core.progress import Progress, ProgressCallback, Reporter, is_shown, reporting
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.graph.multiply_adds import PrecisionReport
from torch2engine.precision.graph.precision_outcome import PrecisionOutcome

if TYPE_CHECKING:
    from torch2engine.precision.lowered_model import LoweredModel
    from torch2engine.precision.verify import EnginePrecision

__all__ = ["DeployReport", "ReportBuilder"]

_logger = logging.getLogger("torch2engine.deploy")


@dataclass(frozen=True, kw_only=True)
class DeployReport:
    """The report of one deploy().

    Args:
        parity: PyTorch against ONNX Runtime, then PyTorch against the engine. A reused engine has only the second; the
            note "...come from the cache..." says so.
        seconds: wall time per phase, in order.
        precision: the arithmetic that answers, e.g. "fp32"; a half model's own dtype where that is lower.
        memory_bytes: device memory that the engine works in, weights not counted; 0 on the CPU.
        notes: sentences for the user.
        lowering: how the ONNX graph came to a low precision; None where it was not changed.
        computed: the precisions that a lowered engine computes in, as TensorRT reports them for its layers. None in
            float32 and for ONNX Runtime.
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
        """Whether there was a comparison and every one passed."""
        return bool(self.parity) and all(report.passed for report in self.parity)

    @property
    def verdict(self) -> str:
        """The weakest of the comparisons: "failed", "weak" (passed, but it proves little) or "passed"."""
        verdicts = {report.verdict for report in self.parity}
        if not self.passed:
            return "failed"
        return "weak" if "weak" in verdicts else "passed"

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


class ReportBuilder:
    """Collects the findings of one deploy(), step by step.

    Args:
        progress: as for deploy(); it is told when a phase begins and ends.
    """

    def __init__(self, progress: Progress = None) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self._callback: ProgressCallback | None = None  # of the phase that is open
        self._lowering: PrecisionOutcome | None = None
        self._computed: PrecisionReport | None = None
        self._parity: list[ParityReport] = []
        self._notes: list[str] = []
        self._engine_notes: list[str] = []  # those of `_notes` that stay true when the engine is reused
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, is_reported: bool = True) -> Generator[None]:
        """Time the body as a phase of the report, and report its progress.

        Args:
            name: of the phase; seconds of phases of one name are added.
            is_reported: False only runs the body.

        Raises:
            BuildError: the progress callback cancels.
        """
        if not is_reported:
            yield
            return
        start = time.perf_counter()
        try:
            with self._reported(name):
                yield
        finally:
            seconds = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            _logger.info("%s: %.1f s", name, seconds)

    @contextmanager
    def _reported(self, name: str) -> Generator[None]:
        """Report that a phase begins, and that it ends; a phase inside another one shares its bar."""
        outer = self._callback
        with reporting(self._progress if outer is None else outer) as callback:
            reporter = Reporter("deploy", callback, self._started)
            self._callback = callback
            try:
                reporter(name, 0, 1)
                yield
                reporter(name, 1, 1)
            finally:
                self._callback = outer

    @property
    def progress(self) -> ProgressCallback | None:
        """Takes the steps inside the phase that is open then; None if nobody sees them."""
        return self._forward if is_shown(self._progress) else None

    def _forward(self, phase: str, step: int, steps: int, seconds: float, /) -> object:
        return None if self._callback is None else self._callback(phase, step, steps, seconds)

    def add_parity(self, *reports: ParityReport) -> None:
        """Add comparisons with PyTorch."""
        self._parity.extend(reports)

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add sentences for the user."""
        self._notes.extend(notes)

    def add_lowering(self, lowered: LoweredModel) -> None:
        """Add how the ONNX graph was lowered, with its comparisons and notes."""
        self._lowering = lowered.outcome
        self.add_parity(*lowered.reports)
        self._add_engine_notes(lowered.notes)

    def add_engine_precision(self, engine_precision: EnginePrecision) -> None:
        """Add the precisions that the engine computes in, with notes."""
        self._computed = engine_precision.report
        self._add_engine_notes(engine_precision.notes)

    @property
    def is_lowered(self) -> bool:
        """Whether the ONNX graph was lowered."""
        return self._lowering is not None

    def reusable_findings(self) -> dict[str, Any]:
        """Give everything that stays true when a later deploy reuses the engine, as JSON values."""
        return {
            "outcome": None if self._lowering is None else self._lowering.to_json(),
            "computed": None if self._computed is None else self._computed.to_json(),
            "notes": list(self._engine_notes),
        }

    def add_reusable_findings(self, facts: Mapping[str, Any]) -> None:
        """Add the `reusable_findings` of an earlier deploy."""
        outcome = facts["outcome"]
        computed = facts["computed"]
        self._lowering = None if outcome is None else PrecisionOutcome.from_json(outcome)
        self._computed = None if computed is None else PrecisionReport.from_json(computed)
        self._add_engine_notes(facts["notes"])

    def _add_engine_notes(self, notes: Iterable[str]) -> None:
        sentences = list(notes)
        self._engine_notes.extend(sentences)
        self._notes.extend(sentences)

    def copy(self) -> ReportBuilder:
        """Give a builder with the same contents, for an attempt that may fail."""
        other = ReportBuilder(self._progress)
        other._started = self._started
        other._callback = self._callback
        other._lowering = self._lowering
        other._computed = self._computed
        other._parity = list(self._parity)
        other._notes = list(self._notes)
        other._engine_notes = list(self._engine_notes)
        other._seconds = dict(self._seconds)
        return other

    def build(self, precision: str, memory_bytes: int = 0) -> DeployReport:
        """Give the report of everything so far.

        Args:
            precision: the arithmetic that answers.
            memory_bytes: device memory that the engine works in.
        """
        return DeployReport(
            parity=tuple(self._parity),
            seconds=dict(self._seconds),
            precision=precision,
            memory_bytes=memory_bytes,
            notes=tuple(self._notes),
            lowering=self._lowering,
            computed=self._computed,
        )
