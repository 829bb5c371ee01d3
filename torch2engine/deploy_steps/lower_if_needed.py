"""The exported graph of one deploy() → the graph in the requested precision, compared with the model.

Enters: a `DeployRequest`, the exported graph, calibration data. Leaves: a `LoweredModel`. Separate because it connects
the stage `precision` with the request and the report of one deploy().
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.precision.lower import lower
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.validate import needed_lowering

__all__ = ["lower_if_needed"]


def lower_if_needed(
    request: DeployRequest,
    artifact: OnnxArtifact,
    parity_cases: Sequence[ParityCase],
    calibration: Iterable[Any] | None,
    report: ReportBuilder,
) -> LoweredModel:
    """Lower an exported graph if its precision needs that, and compare it with the model on ONNX Runtime.

    Args:
        request: its precision, tolerance and flavour count.
        artifact: the exported model; it stays as it is where `needed_lowering` gives a precision of float32.
        parity_cases, calibration: as for `torch2engine.precision.lower.lower`.
        report: takes the phase "precision", the comparisons, the notes, and which nodes are lowered.

    Raises:
        as `torch2engine.precision.lower.lower`.
    """
    precision = needed_lowering(request.precision, artifact)
    with report.phase("precision", is_reported=precision.changes_graph):
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
