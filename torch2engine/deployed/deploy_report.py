"""The report of one deploy(), as a value that prints itself.

Enters: comparisons, notes and seconds, or the JSON values of a saved report. Leaves: a `DeployReport`, with text and
JSON. Separate because every deployed module carries one, and none of them makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch2engine.core.errors import ArtifactError
from torch2engine.core.finding import Finding
from torch2engine.core.package import public
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.core.tried_candidate import TriedCandidate, tried_rows
from torch2engine.core.wording import aligned, quote
from torch2engine.deployed.explanation import GraphPartRecord
from torch2engine.deployed.report_page import report_page
from torch2engine.parity.parity_report import ParityReport

if TYPE_CHECKING:
    from torch2engine.deployed.benchmark import BenchmarkReport

__all__ = ["DeployReport"]

_NOTHING_COMPARED = "nothing was compared: this engine comes without the report of a deploy"


@public
@dataclass(frozen=True, kw_only=True)
class DeployReport:
    """The report of one deploy().

    Args:
        parity: PyTorch against ONNX Runtime, then PyTorch against the engine. A reused engine has only the second; the
            note "...come from the cache..." says so.
        seconds: wall time per phase, in the order of their ends. Where the graph is checked beside the build, the time
            of "build" is what the build took after that.
        precision: the arithmetic that answers, e.g. "fp32"; a half model's own dtype where that is lower.
        memory_bytes: device memory that the engine works in, weights not counted; a `SharedMemory` as a whole. 0 on the
            CPU.
        model_bytes: the size of the engine's plan, or of the ONNX model for ONNX Runtime, with the weights in it.
        notes: sentences for the user.
        lowering: how the ONNX graph came to a low precision; None where it was not changed.
        computed: the precision of each product and which attention is fused, as TensorRT reports them for the engine's
            layers; for ONNX Runtime as the graph has them. None where that is not known.
        findings: what makes the engine slower than it could be, as far as it shows without a call. `explain` has those
            that must be measured, too.
        parts: what runs where, in order: one whole engine, or engines and what stays in PyTorch.
        tried: what was timed to find the fastest, with the reasons: the engine's variants under
            BuildConfig(optimize="measure"), then engine and PyTorch under runtime="fastest".

    >>> report = module.report
    >>> report.precision, [parity.passed for parity in report.parity], list(report.seconds)
    ('fp32', [True], ['capture', 'export', 'reference', 'check'])
    """

    parity: tuple[ParityReport, ...]
    seconds: Mapping[str, float]
    precision: str
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()
    lowering: PrecisionOutcome | None = None
    computed: PrecisionReport | None = None
    findings: tuple[Finding, ...] = ()
    model_bytes: int = 0
    parts: tuple[GraphPartRecord, ...] = ()
    tried: tuple[TriedCandidate, ...] = ()

    @classmethod
    def of_nothing(cls, precision: str) -> DeployReport:
        """The report of a module that comes without one: nothing was compared, and a note says so.

        Args:
            precision: the arithmetic that answers.
        """
        return cls(parity=(), seconds={}, precision=precision, notes=(_NOTHING_COMPARED,))

    @property
    def passed(self) -> bool:
        """Whether there was a comparison and every one passed."""
        return bool(self.parity) and all(report.passed for report in self.parity)

    @property
    def verdict(self) -> Literal["passed", "weak", "failed", "not compared"]:
        """The weakest of the comparisons: "failed", "weak" (passed, but it proves little) or "passed".

        "not compared" means that there was none.
        """
        if not self.parity:
            return "not compared"
        verdicts = {report.verdict for report in self.parity}
        if not self.passed:
            return "failed"
        return "weak" if "weak" in verdicts else "passed"

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        memory = f", {self.memory_bytes / 2**20:.0f} MiB working memory" if self.memory_bytes else ""
        lines = [f"{self.precision}{memory}; {phases or self.verdict}"]
        lines += [] if self.lowering is None else [str(self.lowering)]
        if self.computed is not None and self.computed.has_engine:
            lines += [f"engine: {self.computed.summary()}", *filter(None, [self.computed.attention_summary()])]
        lines += map(str, self.parity)
        lines += aligned(tried_rows(self.tried)) if self.tried else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), *map(str, self.findings)])

    def to_html(self, path: str | Path, title: str = "", benchmark: BenchmarkReport | None = None) -> Path:
        """Write the report as one page for a browser, which needs no network.

        It shows phases, parity, what runs where, precision and attention by torch module, memory, findings and notes.

        Args:
            path: the file to write.
            title: the heading, e.g. the model's name.
            benchmark: what `module.benchmark` measured, to be shown as well: times and rates of calls.

        Returns:
            the path.

        Raises:
            ArtifactError: the file can't be written.
        """
        target = Path(path)
        try:
            target.write_text(report_page(self, title, benchmark), encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"report '{target}'",
                got=quote(error),
                allowed="a file that can be written",
                fix="name a file in a folder that exists",
                path=str(target),
            ) from error
        return target

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "parity": [report.to_json() for report in self.parity],
            "seconds": dict(self.seconds),
            "precision": self.precision,
            "memory_bytes": self.memory_bytes,
            "model_bytes": self.model_bytes,
            "notes": list(self.notes),
            "lowering": None if self.lowering is None else self.lowering.to_json(),
            "computed": None if self.computed is None else self.computed.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "parts": [asdict(part) for part in self.parts],
            "tried": [one.to_json() for one in self.tried],
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], lowering: PrecisionOutcome | None, computed: PrecisionReport | None
    ) -> DeployReport:
        """The inverse of `to_json`.

        Args:
            data: what `to_json` gave.
            lowering, computed: what its members of these names mean, since only the folder `precision` reads them.
        """
        return cls(
            parity=tuple(ParityReport.from_json(report) for report in data["parity"]),
            seconds={str(phase): float(seconds) for phase, seconds in data["seconds"].items()},
            precision=str(data["precision"]),
            memory_bytes=int(data["memory_bytes"]),
            notes=tuple(map(str, data["notes"])),
            lowering=lowering,
            computed=computed,
            # older reports lack these four
            findings=tuple(map(Finding.from_json, data.get("findings", ()))),
            model_bytes=int(data.get("model_bytes", 0)),
            parts=tuple(map(GraphPartRecord.from_json, data.get("parts", ()))),
            tried=tuple(map(TriedCandidate.from_json, data.get("tried", ()))),
        )
