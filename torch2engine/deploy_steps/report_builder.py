"""Collects the report of one deploy(), step by step.

Enters: comparisons, notes, and the seconds of each phase, as deploy() goes along. Leaves: a `DeployReport`. Separate
because the steps only measure, and this file alone puts together what they found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch2engine.core.finding import Finding
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.core.progress import Progress, ProgressCallback, Reporter, is_shown, reporting
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.deployed.explanation import GraphPartRecord
from torch2engine.deployed.module_access import artifact_of
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.graph.engine_findings import engine_findings

if TYPE_CHECKING:
    from torch2engine.artifact.engine_artifact import EngineArtifact
    from torch2engine.deployed.trt.trt_module import TRTModule
    from torch2engine.precision.engine_precision import EnginePrecision
    from torch2engine.precision.lowered_model import LoweredModel

__all__ = ["ReportBuilder"]

_logger = logging.getLogger("torch2engine.deploy")


class ReportBuilder:
    """Collects the findings of one deploy(), step by step.

    Every finding replaces a tuple or a Mapping by a longer one. So two copies of a builder share nothing that changes.

    Args:
        progress: as for deploy(); it is called when a phase begins and ends.
    """

    def __init__(self, progress: Progress = None) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self._callback: ProgressCallback | None = None  # of the phase that is open
        self._lowering: PrecisionOutcome | None = None
        self._computed: PrecisionReport | None = None
        self._parity: tuple[ParityReport, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._engine_notes: tuple[str, ...] = ()  # those of `_notes` that stay true when the engine is reused
        self._findings: tuple[Finding, ...] = ()
        self._seconds: Mapping[str, float] = {}
        self._seconds_inside = 0.0  # of phases inside the one that is open

    @contextmanager
    def phase(self, name: str, is_reported: bool = True) -> Generator[None]:
        """Time the body as a phase of the report, and report its progress.

        Args:
            name: of the phase; seconds of phases of one name are added. A phase may be inside another one: its seconds
                then count for the inner phase alone.
            is_reported: False only runs the body.

        Raises:
            BuildError: the progress callback cancels.
        """
        if not is_reported:
            yield
            return
        start = time.perf_counter()
        inside_before = self._seconds_inside
        self._seconds_inside = 0.0
        try:
            with self._reported(name):
                yield
        finally:
            whole = time.perf_counter() - start
            seconds = whole - self._seconds_inside
            self._seconds_inside = inside_before + whole
            self._seconds = {**self._seconds, name: self._seconds.get(name, 0.0) + seconds}
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
        """The callback for steps inside the phase that is open when it is called; None if no progress is shown."""
        return self._forward if is_shown(self._progress) else None

    def _forward(self, phase: str, step: int, steps: int, seconds: float, /) -> object:
        return None if self._callback is None else self._callback(phase, step, steps, seconds)

    def add_parity(self, *reports: ParityReport) -> None:
        """Add comparisons with PyTorch."""
        self._parity += reports

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add sentences for the user."""
        self._notes += tuple(notes)

    def add_lowering(self, lowered: LoweredModel) -> None:
        """Add how the ONNX graph was lowered, with its comparisons and notes."""
        self._lowering = lowered.outcome
        self.add_parity(*lowered.reports)
        self.add_lasting_notes(lowered.notes)

    def add_engine_precision(self, engine_precision: EnginePrecision) -> None:
        """Add the precisions that the engine computes in, with notes."""
        self._computed = engine_precision.report
        self.add_lasting_notes(engine_precision.notes)

    def add_precision_report(self, report: PrecisionReport) -> None:
        """Add the precisions that a graph is computed in where no engine is built."""
        self._computed = report

    def add_engine_findings(self, module: TRTModule) -> None:
        """Add what makes an engine slower than it could be. Its precisions must be known by then."""
        self._findings = engine_findings(cast("EngineArtifact", artifact_of(module)), self._computed, module.layers())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What makes the engine slower than it could be."""
        return self._findings

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
            "findings": [finding.to_json() for finding in self._findings],
        }

    def add_reusable_findings(self, findings: Mapping[str, Any]) -> None:
        """Add the `reusable_findings` of an earlier deploy."""
        outcome = findings["outcome"]
        computed = findings["computed"]
        self._lowering = None if outcome is None else PrecisionOutcome.from_json(outcome)
        self._computed = None if computed is None else PrecisionReport.from_json(computed)
        self.add_lasting_notes(findings["notes"])
        self._findings = tuple(map(Finding.from_json, findings.get("findings", ())))  # older records have none

    def add_lasting_notes(self, notes: Iterable[str]) -> None:
        """Add sentences for the user that stay true when a later deploy reuses the engine."""
        sentences = tuple(notes)
        self._engine_notes += sentences
        self._notes += sentences

    def copy(self) -> ReportBuilder:
        """Give a builder with the same findings, for an attempt that may fail."""
        return copy(self)

    def build(
        self, precision: str, memory_bytes: int = 0, model_bytes: int = 0, parts: Iterable[GraphPartRecord] = ()
    ) -> DeployReport:
        """Give the report of everything so far.

        Args:
            precision: the arithmetic that answers.
            memory_bytes: device memory that the engine works in.
            model_bytes: the size of the plan or of the ONNX model.
            parts: what runs where.
        """
        return DeployReport(
            parity=self._parity,
            seconds=dict(self._seconds),
            precision=precision,
            memory_bytes=memory_bytes,
            model_bytes=model_bytes,
            notes=self._notes,
            lowering=self._lowering,
            computed=self._computed,
            findings=self._findings,
            parts=tuple(replace(part) for part in parts),  # copies, since a running model goes on writing into its own
        )
