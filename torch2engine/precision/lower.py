"""A float32 `OnnxArtifact` + `Precision` → a lowered one that was compared with the model, and its loss of accuracy.

Enters: the exported model, cases with the reference's answers, calibration data. Leaves: the graph that TensorRT will
build. Separate because it composes independent steps: lower, compare, and search within a budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Precision, Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import FLOAT32_PRECISIONS, QUANTIZED_PRECISIONS
from torch2engine.core.progress import Progress, Reporter, reporting
from torch2engine.precision.budget_search import BudgetSearch
from torch2engine.precision.lower_graph import GraphLowering
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.validate import require_lowered_nodes, require_no_float64

__all__ = ["lower"]


def lower(
    artifact: OnnxArtifact,
    precision: Precision,
    cases: Sequence[ParityCase],
    calibration: Iterable[Any] | None = None,
    *,
    tolerance: Tolerances | None = None,
    flavour: str | None = None,
    progress: Progress = None,
) -> LoweredModel:
    """Cast or quantise a graph, and judge the result.

    Args:
        artifact: in float32.
        precision: the requested one, and what it may cost.
        cases: the parity cases; also the calibration data where there is no other.
        calibration: inputs in the form of sample_input; read once, or for Budget.metric once more for each graph.
        tolerance: when the graph counts as equal; by default `Tolerance.default` of the precision, or more where the
            model's sensitivity is larger.
        flavour: the TensorRT that will build the graph, whose limits count; None: ONNX Runtime will answer.
        progress: as for `build`; it receives every batch of `calibration`, in a phase of that name.

    Returns:
        the first graph that holds the budget, or the tolerance where there is no budget; for "fp32" and "tf32", which
        are the builder's business, the artifact itself.

    Raises:
        InputError: a model that is not in float32, a path in keep_fp32 that no module has, or calibration data that
            does not fit.
        InstallationError: no ModelOpt.
        UnsupportedOperatorError: the flavour can't build such a graph.
        ExportError: ModelOpt failed.
        PrecisionError: nothing would compute in the precision, not even where a budget holds.
        ParityError: the graph does not hold the tolerance, or no graph the budget.
        BuildError: progress returned False.
    """
    if not precision.changes_graph:
        return LoweredModel(artifact, cases, tolerance, builder_precision=precision.builder_precision)
    _require_float32_model(artifact, precision)
    with reporting(progress) as report:
        reporter = Reporter("calibration", report)
        lowering = GraphLowering(artifact, precision, cases, calibration, tolerance, flavour, reporter)
        return _lower_within_budget(lowering)


def _require_float32_model(artifact: OnnxArtifact, precision: Precision) -> None:
    has_own_quantisers = artifact.precision in QUANTIZED_PRECISIONS and artifact.precision == precision.dtype
    if artifact.precision not in FLOAT32_PRECISIONS and not has_own_quantisers:
        raise InputError(
            "precision",
            got=f"{precision.dtype!r} for a model that computes in {artifact.precision} itself",
            allowed="a float32 model",
            fix="deploy model.float(), or leave precision out",
        )


def _lower_within_budget(lowering: GraphLowering) -> LoweredModel:
    float32_reasons = lowering.requested_float32_nodes()
    require_no_float64(lowering.artifact.checked_onnx_path, lowering.precision)
    for node, reason in lowering.overflowing_nodes().items():
        float32_reasons.setdefault(node, reason)
    lowered = lowering.make(float32_reasons)
    require_lowered_nodes(lowered.outcome, lowering.precision)
    budget = lowering.precision.budget
    if budget is not None:
        return BudgetSearch(lowering, budget, float32_reasons).run(lowered)
    lowered.reports[0].raise_if_failed()
    return lowered
