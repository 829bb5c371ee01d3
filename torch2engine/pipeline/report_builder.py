"""Collects the report of one deploy(), step by step.

Enters: comparisons, notes, and the seconds of each phase, as deploy() goes along. Leaves: a `DeployReport`. Separate
because the steps only measure, and this file alone puts together what they found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch2engine.core.progress import Progress, ProgressCallback, Reporter, is_shown, reporting
from torch2engine.modules.deploy_report import DeployReport
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.graph.multiply_adds import PrecisionReport
from torch2engine.precision.graph.precision_outcome import PrecisionOutcome

if TYPE_CHECKING:
    from torch2engine.precision.lowered_model import LoweredModel
    from torch2engine.precision.verify import EnginePrecision

__all__ = ["ReportBuilder"]

_logger = logging.getLogger("torch2engine.deploy")


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
