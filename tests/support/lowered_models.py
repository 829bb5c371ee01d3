"""Trained models in a lower precision, as deploy() makes them, from one export for all precisions.

Enters: a trained model and a precision. Leaves: a module on ONNX Runtime, with its report. Separate from
`precision_models` because the export of such a model takes longer than lowering and judging it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from tests.support.models import exported
from tests.support.precision_models import Trained, trained
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import BuildConfig, RuntimeConfig
from torch2engine.deploy_steps.accept import make_ort_module
from torch2engine.deploy_steps.lower_if_needed import lower_if_needed
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.onnxruntime.ort_module import ORTModule

__all__ = ["deployed", "exported_once", "module_of_export"]


@functools.cache
def exported_once(name: str) -> tuple[OnnxArtifact, list[ParityCase]]:
    """The float32 artifact of a trained model, and its parity cases; the same at each call."""
    subject = trained(name)
    return exported(subject.model, subject.sample, subject.axes)


def deployed(subject: Trained, precision: Any, **options: Any) -> ORTModule:
    """The model as `deploy(..., runtime="onnxruntime")` makes it, calibrated with four batches."""
    calibration = options.get("calibration", subject.data[:4])
    request = DeployRequest.from_arguments(
        given=ModelAndSample(subject.model),
        precision=precision,
        calibration=calibration,
        tolerance=None,
        runtime="onnxruntime",
        config=BuildConfig(),
        runtime_config=RuntimeConfig(),
    )
    artifact, cases = exported_once(subject.name)
    return module_of_export(artifact, cases, request, calibration)


def module_of_export(
    artifact: OnnxArtifact, cases: list[ParityCase], request: DeployRequest, calibration: Iterable[Any] | None
) -> ORTModule:
    """What follows the export in `deploy(..., runtime="onnxruntime")`."""
    report = ReportBuilder()
    lowered = lower_if_needed(request, artifact, cases, calibration, report)
    module = make_ort_module(lowered, request, report)
    module.report = report.build(module.precision)
    return module
