"""`OnnxArtifact` against the module that it was exported from, on ONNX Runtime: the public step `check`.

Enters: an artifact, and the module. Leaves: a `ParityReport`. Separate because days may lie between an export and this
step. So the artifact, not the sample, says at which sizes to compare.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.examples import read_examples, with_examples
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.spec import Signature
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.lowered_parity import parity_cases_for

__all__ = ["capture_like", "check"]

_FITTING = "pass a sample in the form that the model was exported with"


def check(
    model: nn.Module,
    artifact: OnnxArtifact,
    sample_input: Any,
    *,
    examples: Iterable[Any] | None = None,
    tolerance: Tolerances | None = None,
) -> ParityReport:
    """Compare an exported model with the module that it was exported from, by ONNX Runtime on the CPU.

    Args:
        model: the reference.
        artifact: the exported model; its profiles say at which sizes to compare.
        sample_input: in the form that it was exported with.
        examples: real inputs at other sizes, to compare on instead of invented ones, as for `deploy`.
        tolerance: by default `Tolerance.default` of the artifact's precision, or more where the model's own answers
            move more by rounding.

    Returns:
        the report; call its `raise_if_failed`.

    Raises:
        InputError, ShapeError: the sample or an example does not fit the artifact's signature.

    >>> report = t2e.check(model, onnx, sample, examples=[sample[:1]])
    >>> report.passed
    True
    """
    model = unwrap(model)
    given = read_examples(examples)
    with undisturbed(model):
        captured = with_examples(capture_like(artifact, model, sample_input), given)
        answers = answer_parity_cases(captured, sensitivity_precisions=(artifact.precision,))
    answers = replace(answers, parity_cases=parity_cases_for(artifact.precision, answers.parity_cases))
    return answers.compare(ORTModule(artifact), tolerance)


def capture_like(artifact: Artifact, model: nn.Module, sample_input: Any) -> CapturedCall:
    """Capture the model's call with an artifact's signature and profiles.

    Raises:
        InputError, ShapeError: the sample does not fit the signature.
    """
    preprocess = {spec.name: spec.preprocess for spec in artifact.signature.inputs if spec.preprocess is not None}
    expected = [(spec.name, spec.dtype) for spec in artifact.signature.inputs]
    mutations = "write_back" if artifact.signature.writes else "refuse"
    try:
        captured = capture_call(
            model,
            sample_input,
            preprocess=preprocess,
            mutations=mutations,
            live_parameters=artifact.signature.live_parameters,
        )
    except InputError as error:
        if not error.subject.startswith("preprocess["):
            raise
        raise InputError(
            "sample_input", got=error.allowed, allowed=f"the artifact's inputs {expected}", fix=_FITTING
        ) from None
    given = [(spec.name, spec.dtype) for spec in captured.signature.inputs]
    if given != expected:
        raise InputError("sample_input", got=f"inputs {given}", allowed=f"the artifact's {expected}", fix=_FITTING)
    if captured.signature.writes != artifact.signature.writes:
        raise InputError(
            "model",
            got=f"writes into {_written(captured.signature)}",
            allowed=f"writes into {_written(artifact.signature)}, as when it was exported",
            fix="export the model again",
        )
    artifact.signature.resolve([leaf.shape for leaf in captured.sample])
    return replace(captured, signature=artifact.signature, profiles=artifact.profiles)


def _written(signature: Signature) -> str:
    return ", ".join(f"input '{write.input}'" for write in signature.writes) or "no input"
