"""An exported model → the same in the requested precision.

Enters: the exported model, its parity cases and the request. Leaves: a `LoweredModel`, and its part of the report.
Separate because a model may be in the requested precision already, and the flavour that builds it sets limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.pipeline.deploy_report import ReportBuilder
from torch2engine.pipeline.request import DeployRequest
from torch2engine.precision.lower import lower
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.validate import remaining_precision

__all__ = ["lower_and_compare"]


def lower_and_compare(
    artifact: OnnxArtifact,
    parity_cases: Sequence[ParityCase],
    calibration: Iterable[Any] | None,
    request: DeployRequest,
    report: ReportBuilder,
) -> LoweredModel:
    """Lower an exported model to the requested precision, if it is not in it already.

    Args:
        artifact: the exported model.
        parity_cases: inputs with the model's answers.
        calibration: inputs in the form of sample_input, or None.
        request: the precision and the tolerance.
        report: takes comparisons, notes, how the graph was lowered, and the steps of calibration.

    Raises:
        as `torch2engine.precision.lower.lower`.
    """
    precision = remaining_precision(request.precision, artifact)
    with report.phase("precision", when=precision.changes_graph):
        lowered = lower(
            artifact,
            precision,
            parity_cases,
            calibration,
            tolerance=request.tolerance,
            flavour=request.flavour,
            progress=report.progress,
        )
        report.add_lowering(lowered)
    return lowered
