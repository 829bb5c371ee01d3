"""Any deployed module against a model, or against another deployed module → `ParityReport`.

Enters: a candidate that need not come from this model: an ONNX file, an engine that somebody else built. Leaves: one
report. Separate from `check`, whose artifact was exported from the model and has its names, dtypes and structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.examples import read_examples, with_examples
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.signature import capture_call
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.spec import TensorSpec
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.made_inputs import corner_sizes, random_cases
from torch2engine.deployed.module_access import artifact_of, runtime_kind
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["answer_on_any_device", "compare_modules", "compare_with_model"]


def compare_with_model(
    model: nn.Module,
    candidate: DeployedModule[Any],
    sample_input: Any,
    *,
    examples: Iterable[Any] | None = None,
    precision: str | None = None,
    tolerance: Tolerances | None = None,
) -> ParityReport:
    """Compare a candidate's answers with a PyTorch module's.

    Inputs and outputs are matched by name, or by position where the names differ. The sample is resized to min, opt and
    max of the candidate's profiles.

    Args:
        model: the reference.
        candidate: takes and gives tensors that mean the same.
        sample_input: in the form in which the model is called.
        examples: real inputs at other sizes, to compare on instead of invented ones.
        precision: whose default tolerance counts; by default the candidate's.
        tolerance: when the answers count as equal, as for `deploy`.

    Raises:
        InputError: the candidate has other inputs than the model.
        ShapeError: the sample does not fit the candidate.
    """
    model = unwrap(model)
    judged_as = precision or candidate.precision
    with undisturbed(model):
        captured = capture_call(model, sample_input, live_parameters=candidate.signature.live_parameters)
        matches = _match_inputs(captured.signature.inputs, candidate.signature.inputs)
        captured = with_examples(_with_shapes_of(candidate, captured, matches), read_examples(examples))
        answers = answer_parity_cases(captured, sensitivity_precisions=(judged_as,))
    order = [matches[spec.name] for spec in candidate.signature.inputs]
    return _compare_cases(
        "PyTorch", candidate, answers.parity_cases, order, _JudgingRule(judged_as, tolerance, tuple(answers.notes))
    )


def compare_modules(
    reference: DeployedModule[Any],
    candidate: DeployedModule[Any],
    *,
    inputs: Sequence[torch.Tensor] | None = None,
    precision: str | None = None,
    tolerance: Tolerances | None = None,
) -> ParityReport:
    """Compare the answers of two deployed modules.

    Args:
        reference: its answers count as right.
        candidate: takes and gives tensors that mean the same, in whatever order.
        inputs: flat, in the candidate's order. By default random ones at min, opt and max of its first profile.
        precision: whose default tolerance counts; by default the lower one of the two.
        tolerance: when the answers count as equal, as for `deploy`.

    Raises:
        InputError, ShapeError: the reference does not take what the candidate takes.
    """
    matches = _match_inputs(candidate.signature.inputs, reference.signature.inputs)
    if inputs is None:
        live = list(candidate.live_parameters.values())
        cases = random_cases(
            candidate.signature, corner_sizes(artifact_of(candidate).profiles), torch.device("cpu"), live
        )
    else:
        cases = {"input": list(inputs)}
    order = [matches[spec.name] for spec in reference.signature.inputs]
    answered = [
        ParityCase(name, tuple(leaves), answer_on_any_device(reference, [leaves[index] for index in order]))
        for name, leaves in cases.items()
    ]
    judged_as = precision or max(
        (reference.precision, candidate.precision), key=lambda word: PRECISION_TYPES[word].rel_l2
    )
    notes = _notes_on_integers(candidate) if inputs is None else ()
    candidate_order = list(range(len(candidate.signature.inputs)))
    return _compare_cases(
        reference.runtime, candidate, answered, candidate_order, _JudgingRule(judged_as, tolerance, notes)
    )


@dataclass(frozen=True)
class _JudgingRule:
    """The rule that decides whether answers count as equal.

    Args:
        precision: whose default tolerance counts.
        tolerance: the user's, or None.
        notes: for the report.
    """

    precision: str
    tolerance: Tolerances | None
    notes: tuple[str, ...]


def _compare_cases(
    reference: str,
    candidate: DeployedModule[Any],
    cases: Sequence[ParityCase],
    order: Sequence[int],
    rule: _JudgingRule,
) -> ParityReport:
    """Run the candidate on each case, with the inputs in its own order, and compare.

    `judge` is for modules of the reference: it knows their near ties, and takes no other names, dtypes or devices.
    """
    bounds = Bounds.of(rule.tolerance, rule.precision, runtime_kind(candidate))
    report = ParityReport((), f"{reference} vs {candidate.runtime}", bounds.tolerance, rule.notes)
    for case in cases:
        answer = answer_on_any_device(candidate, [case.inputs[index] for index in order])
        answer = _named_like(case.outputs, answer)
        bounds.check_names(case.outputs)
        report = replace(report, notes=tuple(dict.fromkeys((*report.notes, *_notes_on_dtypes(case.outputs, answer)))))
        same_types = {name: _in_dtype_of(case.outputs.get(name), value) for name, value in answer.items()}
        sensitivity = case.sensitivity.get(rule.precision)
        report = report.add(compare(case.outputs, same_types, bounds, case=case.name, sensitivity=sensitivity))
    return report


def answer_on_any_device(module: DeployedModule[Any], leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Call a module with tensors of any device that may have a wider floating dtype than its inputs."""
    # A module that was never called has no device yet.
    device = module.device or torch.device("cpu" if runtime_kind(module) == "onnxruntime" else "cuda")
    prepared = [
        leaf.to(device, torch_dtype(spec.dtype) if leaf.is_floating_point() else None, copy=True)
        for spec, leaf in zip(module.signature.inputs, leaves, strict=True)
    ]
    return module.infer(prepared)


def _match_inputs(available: Sequence[TensorSpec], required: Sequence[TensorSpec]) -> dict[str, int]:
    """Find, for each required input, the available input that stands for it: by name, else by position.

    Returns:
        {name of the required input: index of the available one}.

    Raises:
        InputError: there are others, or another number of them.
    """
    places = {spec.name: index for index, spec in enumerate(available)}
    if all(spec.name in places for spec in required):
        return {spec.name: places[spec.name] for spec in required}
    if len(available) == len(required):
        return {spec.name: index for index, spec in enumerate(required)}
    raise InputError(
        "inputs",
        got=f"{len(required)} of the candidate: {', '.join(map(str, required))}",
        allowed=f"the reference's {len(available)}: {', '.join(map(str, available))}",
        fix="compare models that take the same inputs",
    )


def _with_shapes_of(candidate: DeployedModule[Any], captured: CapturedCall, matches: Mapping[str, int]) -> CapturedCall:
    """Give the model's inputs the candidate's axes.

    Raises:
        ShapeError: the sample does not fit them.
    """
    shapes = {matches[spec.name]: spec.shape for spec in candidate.signature.inputs}
    inputs = tuple(
        replace(spec, shape=shapes.get(index, spec.shape)) for index, spec in enumerate(captured.signature.inputs)
    )
    signature = replace(captured.signature, inputs=inputs, axes=candidate.signature.axes)
    signature.resolve([leaf.shape for leaf in captured.sample])
    return replace(captured, signature=signature, profiles=artifact_of(candidate).profiles)


def _named_like(
    reference: Mapping[str, torch.Tensor], answer: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Name the candidate's outputs like the reference's: by position, unless the names are the same."""
    if set(reference) & set(answer) or len(reference) != len(answer):
        return answer
    return dict(zip(reference, answer.values(), strict=True))


def _in_dtype_of(reference: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    """Cast between floating dtypes, which a half engine of a float32 model has at its outputs."""
    if reference is None or not (reference.is_floating_point() and value.is_floating_point()):
        return value
    return value.to(reference.dtype)


def _notes_on_dtypes(reference: Mapping[str, torch.Tensor], answer: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"output '{name}' is {value.dtype} in the candidate and {reference[name].dtype} in the reference"
        for name, value in answer.items()
        if name in reference and value.dtype != reference[name].dtype and value.is_floating_point()
    ]


def _notes_on_integers(candidate: DeployedModule[Any]) -> tuple[str, ...]:
    integers = [spec.name for spec in candidate.signature.inputs if not torch_dtype(spec.dtype).is_floating_point]
    if not integers:
        return ()
    return (f"the values of {', '.join(integers)} were made up (0, or 1 for masks); give real inputs",)
