"""An exported ONNX graph is compared with the model, on ONNX Runtime, before anything is built from it.

Enters: the graph, and the model's answers. Leaves: the comparison. Separate because it costs CPU time for every row of
every case, most of all in half precision. Where an engine follows, that engine is compared in every case. So the graph
is compared in the small ones first, and in the others only if the engine fails. Where the graph is built as it is, the
builder's process works at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import EarlyBuilder
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerances
from torch2engine.core.errors import ParityError
from torch2engine.core.precisions import QUANTIZED_PRECISIONS
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.judge import judge
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.validate import needed_lowering

__all__ = ["GraphCheck", "cases_before_build"]

_LARGE_BYTES = 2**30  # of a model that host memory may not hold in ONNX Runtime and in the builder at once


@dataclass(frozen=True)
class GraphCheck:
    """The comparison of one deploy's graph.

    Args:
        open_graph: gives the exported graph, as ONNX Runtime runs it. It is opened anew for each comparison, so that
            nothing is held in memory during a build.
        answers: the model's.
        tolerance: when answers count as equal; None for the default of the graph's precision.
        engine_follows: whether an engine is built and compared in every case; else the graph is.
        fits_beside_build: whether the comparison may run while the builder's process builds this very graph.
    """

    open_graph: Callable[[], ORTModule]
    answers: ReferenceAnswers
    tolerance: Tolerances | None
    engine_follows: bool
    fits_beside_build: bool = False

    @classmethod
    def for_request(cls, request: DeployRequest, exported: OnnxArtifact, answers: ReferenceAnswers) -> GraphCheck:
        """The check of a deploy.

        A quantised engine is not compared in random cases, so its graph is compared in all cases.
        """
        precisions = (request.precision.dtype, exported.precision)
        is_quantised = any(precision in QUANTIZED_PRECISIONS for precision in precisions)
        engine_follows = request.runtime != "onnxruntime" and not is_quantised
        is_built_as_it_is = engine_follows and not needed_lowering(request.precision, exported).changes_graph
        fits_beside_build = is_built_as_it_is and exported.model_bytes <= _LARGE_BYTES
        return cls(lambda: ORTModule(exported), answers, request.tolerance, engine_follows, fits_beside_build)

    def compare_now_or_during_build(self, report: ReportBuilder, early_builder: EarlyBuilder) -> None:
        """Compare the graph now, or while the builder works: in all cases, or in `cases_before_build`.

        Args:
            report: takes the phase "check" and the comparison.
            early_builder: its `check_during_build` becomes this comparison where that fits beside the build.

        Raises:
            ParityError: the graph does not answer like the model.
        """
        if self.fits_beside_build:
            early_builder.check_during_build = partial(self._require_equal_answers, report)
        else:
            self._require_equal_answers(report)

    def _require_equal_answers(self, report: ReportBuilder) -> None:
        with report.phase("check"):
            report.add_parity(self.compare().raise_if_failed())

    def compare(self) -> ParityReport:
        """Compare the graph as `compare_now_or_during_build` does; call `raise_if_failed` of the report."""
        names = ", ".join(f"'{case.name}'" for case in self._left_out)
        note = [f"compared on the engine alone: {names}"] if names else []
        return judge(self.open_graph(), self._cases, self.tolerance, [*self.answers.notes, *note])

    @contextmanager
    def blaming_graph_if_wrong(self) -> Generator[None]:
        """Compare the graph in the cases left out if an engine fails in the block: the graph itself may be wrong there.

        Raises:
            ParityError: the graph's own if it differs from the model in these cases, else the engine's.
        """
        try:
            yield
        except ParityError:
            if self._left_out:
                judge(self.open_graph(), self._left_out, self.tolerance, self.answers.notes).raise_if_failed()
            raise

    @property
    def _cases(self) -> Sequence[ParityCase]:
        cases = self.answers.parity_cases
        return cases_before_build(cases) if self.engine_follows else cases

    @property
    def _left_out(self) -> Sequence[ParityCase]:
        names = {case.name for case in self._cases}
        return [case for case in self.answers.parity_cases if case.name not in names]


def cases_before_build(cases: Sequence[ParityCase]) -> list[ParityCase]:
    """Choose the cases in which a graph is compared before an engine is built from it.

    Real inputs all count. Invented inputs count if they are no larger than the smallest opt. If several have the same
    sizes, the first one counts, because profiles do not change a graph. Profiles of one size have a min and no opt.

    Args:
        cases: from `make_parity_cases`, in its order.
    """
    opts = [_elements(case) for case in cases if case.kind == "opt"]
    mins = [_elements(case) for case in cases if case.kind == "min"]  # also the opt of a profile that begins with it
    limit = min(opts or mins, default=math.inf)
    kept: list[ParityCase] = []
    seen: set[tuple[bool, tuple[tuple[int, ...], ...]]] = set()
    for case in cases:
        key = (case.kind == "random", tuple(tuple(leaf.shape) for leaf in case.inputs))
        is_needed = not case.kind or (_elements(case) <= limit and key not in seen)
        if is_needed:
            seen.add(key)
            kept.append(case)
    return kept


def _elements(case: ParityCase) -> int:
    return sum(leaf.numel() for leaf in case.inputs)
