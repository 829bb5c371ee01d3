"""A module takes the model's place only if it answers like the model.

Enters: an engine, built now or by an earlier deploy, or a lowered ONNX model. Leaves: a deployed module that was
compared with PyTorch, or an error. Separate because every engine is accepted in the same way, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.builder.load_or_build import PendingEngine
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerances
from torch2engine.deploy_steps.kernels_for_cases import compile_kernels_for
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.explanation import GraphPartRecord
from torch2engine.deployed.judge import ENGINE_REPEATS, judge
from torch2engine.deployed.module_access import (
    artifact_of,
    attach_model,
    prove_split_axes,
    share_live_parameters,
)
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.precision.computed_precisions import report_at_opt
from torch2engine.precision.engine_precision import verify_engine_precision
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.lowered_parity import cast_case, parity_cases_for, tolerance_for

__all__ = [
    "EngineCandidate",
    "accept",
    "attach_report",
    "make_ort_module",
    "make_verified_trt_module",
    "store_in_cache",
]

M = TypeVar("M", TRTModule, ORTModule)

_OTHER_WEIGHTS = "what stays in float32 was chosen for the weights that were deployed first; these are others"


@dataclass(frozen=True, kw_only=True)
class EngineCandidate:
    """An engine that may take the model's place, and what it is compared with.

    Args:
        engine: the engine.
        parity_cases: inputs with the model's answers, in the engine's dtypes.
        tolerance: when the engine counts as equal to the model; None for the default of its precision.
        refit_tolerance: when the engine counts as equal after a later refit; None for the default of its precision.
        judged_as: the precision whose default and sensitivity count; None for the engine's own.
        is_reused: whether engine and ONNX model are those of an earlier deploy.
        notes: on the parity cases, for the comparison's report.
    """

    engine: EngineArtifact
    parity_cases: Sequence[ParityCase]
    tolerance: Tolerances | None
    refit_tolerance: Tolerances | None
    judged_as: str | None
    is_reused: bool
    notes: Sequence[str] = ()

    @classmethod
    def of_lowered(cls, engine: EngineArtifact, lowered: LoweredModel) -> EngineCandidate:
        """An engine of a model that was exported and lowered just now; its notes are in the report already."""
        return cls(
            engine=engine,
            parity_cases=lowered.parity_cases,
            tolerance=lowered.tolerance,
            refit_tolerance=lowered.refit_tolerance,
            judged_as=lowered.judged_as,
            is_reused=False,
        )

    @classmethod
    def of_earlier_deploy(
        cls, engine: EngineArtifact, lowered_to: str | None, request: DeployRequest, reference_answers: ReferenceAnswers
    ) -> EngineCandidate:
        """An engine that an earlier deploy built, compared with the model's answers of today.

        Args:
            engine: of the earlier deploy.
            lowered_to: the precision that its graph was lowered to; None where it was not lowered.
            request: the request of today.
            reference_answers: the model's answers, in the model's own dtypes.
        """
        parity_cases = reference_answers.parity_cases
        tolerance = request.tolerance
        judged_as: str | None = None
        if lowered_to is not None:
            precision = replace(request.precision, dtype=lowered_to)
            tolerance = tolerance_for(precision, tolerance)
            judged_as = precision.lowest_type
            chosen_cases = parity_cases_for(lowered_to, parity_cases)
            parity_cases = [cast_case(case, engine.signature, lowered_to) for case in chosen_cases]
        return cls(
            engine=engine,
            parity_cases=parity_cases,
            tolerance=tolerance,
            refit_tolerance=tolerance,
            judged_as=judged_as,
            is_reused=True,
            notes=reference_answers.notes,
        )


def make_verified_trt_module(
    engine: PendingEngine, lowered: LoweredModel, request: DeployRequest, gpu: torch.device, report: ReportBuilder
) -> TRTModule:
    """Make a module of a lowered model's engine, and require the model's answers and the requested precision.

    Args:
        engine: built now, or loaded from the cache.
        lowered: the ONNX model that was exported and lowered just now.
        request: the model, and how the module is to answer.
        gpu: where the engine runs.
        report: takes the comparison, the engine's precisions and notes.

    Raises:
        ParityError, RefitError: the engine does not answer like the model.
        PrecisionError: it computes too much in another precision.
    """
    module = accept(EngineCandidate.of_lowered(engine.artifact, lowered), request, gpu, report)
    report.add_engine_precision(verify_engine_precision(module, lowered.artifact.precision, lowered.parity_cases))
    report.add_engine_findings(module)
    report.add_notes(lowered.check_metric(module))
    report.add_notes(engine.notes)  # whether it comes from the cache
    return module


def accept(candidate: EngineCandidate, request: DeployRequest, gpu: torch.device, report: ReportBuilder) -> TRTModule:
    """Make a module of an engine, and require that it answers like the model.

    Args:
        candidate: the engine, and what it is compared with.
        request: the model, and how the module is to answer.
        gpu: where the engine runs.
        report: takes the comparison and notes.

    Raises:
        ParityError, RefitError: the engine does not answer like the model.
    """
    module = TRTModule(candidate.engine, runtime_config=request.runtime_config, reference=request.eager_reference).bind(
        gpu
    )
    compile_kernels_for(module, candidate.parity_cases, report.progress)
    share_live_parameters(module, request.model)
    if WEIGHTS in candidate.engine.files:
        samples = [(case.name, case.inputs) for case in candidate.parity_cases]
        had_other_weights = attach_model(
            module, request.model, samples, candidate.refit_tolerance, onnx_is_current=not candidate.is_reused
        )
        if had_other_weights and candidate.is_reused and report.is_lowered:
            report.add_notes([_OTHER_WEIGHTS])
    parity = judge(
        module, candidate.parity_cases, candidate.tolerance, candidate.notes, ENGINE_REPEATS, candidate.judged_as
    )
    report.add_parity(parity.raise_if_failed())
    report.add_notes(prove_split_axes(module, [case.inputs for case in candidate.parity_cases], request.tolerance))
    return module


def make_ort_module(lowered: LoweredModel, request: DeployRequest, report: ReportBuilder) -> ORTModule:
    """Make a module of an ONNX model, which was compared with the model when it was checked and lowered.

    Args:
        lowered: the ONNX model.
        request: the model, and how the module is to answer.
        report: takes notes.
    """
    runtime_config = request.runtime_config.on_cpu()
    module = ORTModule(lowered.artifact, runtime_config=runtime_config, reference=request.eager_reference)
    share_live_parameters(module, request.model)
    if WEIGHTS in lowered.artifact.files:
        samples = [(case.name, case.inputs) for case in lowered.parity_cases]
        attach_model(module, request.model, samples, lowered.refit_tolerance)
    report.add_notes(prove_split_axes(module, [case.inputs for case in lowered.parity_cases], request.tolerance))
    onnx_path = lowered.artifact.checked_onnx_path
    report.add_precision_report(report_at_opt(module, onnx_path, lowered.parity_cases, may_run=False))
    return module


def attach_report(module: M, report: ReportBuilder) -> M:
    """Give an accepted module the report of everything so far.

    Returns:
        the module.
    """
    memory_bytes = 0 if isinstance(module, ORTModule) else module.memory_bytes
    artifact = cast("EngineArtifact | OnnxArtifact", artifact_of(module))
    whole = GraphPartRecord(module.runtime, 0, "")
    module.report = report.build(module.precision, memory_bytes, artifact.model_bytes, [whole])
    return module


def store_in_cache(engine: PendingEngine, module: TRTModule, request: DeployRequest) -> None:
    """Store an accepted engine in the cache, with the kernels that TensorRT-RTX has compiled meanwhile.

    Args:
        engine: as it was loaded or built.
        module: the same engine, with the weights and the kernels that it has now.
        request: its kernel_specialization says whether other deploys can use these kernels.
    """
    accepted = module.compiled()
    if request.runtime_config.kernel_specialization != "none":
        # A later deploy may not want kernels that were compiled for single shapes.
        accepted = accepted.with_runtime_cache(engine.artifact.read_runtime_cache())
    engine.store(accepted)
