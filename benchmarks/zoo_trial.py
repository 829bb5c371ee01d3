"""One model of the zoo with its inputs, and the comparison of what answers in its place.

Enters: a `ZooEntry`. Leaves: its deployed module, or an error where answers are off. Separate because an engine, a
module in parts and torch.compile's answers are all held against the model at the same sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

import torch2engine as t2e
from tests.zoo.entry import ZooEntry
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.examples import with_examples
from torch2engine.capture.reference import outputs_by_name
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers, answer_parity_cases
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.judge import judge
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds
from torch2engine.trt.bindings import find_tensorrt

__all__ = ["ZooTrial"]


@dataclass(frozen=True)
class ZooTrial:
    """A model that is tried.

    Args:
        entry: where it comes from.
        model: on the device where it is tried.
        sample: its inputs at the opt sizes, there too.
        between: inputs at sizes that no profile names.
        ends: inputs at the smallest and at the largest sizes.
        runtime: "tensorrt" or "onnxruntime".
    """

    entry: ZooEntry
    model: nn.Module
    sample: Mapping[str, Any]
    between: Mapping[str, Any]
    ends: tuple[Mapping[str, Any], ...]
    runtime: str

    @classmethod
    def make(cls, entry: ZooEntry, backend: str) -> ZooTrial:
        """Make the model and its inputs.

        Args:
            entry: the model.
            backend: "cpu" or "gpu".
        """
        device, runtime = ("cuda", "tensorrt") if backend == "gpu" else ("cpu", "onnxruntime")
        model = entry.make().to(device)
        low, sample, between, high = (
            {name: value.to(device) for name, value in entry.sample(entry.sizes(which)).items()}
            for which in ("min", "opt", "between", "max")
        )
        return cls(entry, model, sample, between, (low, high), runtime)

    def deploy(self, **options: Any) -> DeployedModule[Any]:
        """Deploy the model with its axes, which compares it at their smallest, usual and largest sizes.

        Args:
            options: more arguments of `torch2engine.deploy`.

        Raises:
            Torch2EngineError: as `torch2engine.deploy`.
        """
        untyped: Any = t2e.deploy  # the options are its caller's
        examples = self.ends if self.entry.is_given_examples else None
        module = untyped(
            self.model,
            self.sample,
            self.entry.axes,
            examples=examples,
            runtime=self.runtime,
            cache=False,
            **options,
        )
        assert isinstance(module, DeployedModule) and module.report is not None
        return module

    def compare(self, module: DeployedModule[Any]) -> None:
        """Compare a deployed module with the model at the sizes between.

        Raises:
            ParityError: they differ.
        """
        with undisturbed(self.model):
            captured = capture_call(self.model, self.sample, self.entry.axes)
            captured = dataclasses.replace(captured, signature=module.signature)
            answers = _answers(captured, [self.between], module.precision)
        judge(module, answers.parity_cases, notes=answers.notes).raise_if_failed()

    def compare_compiled(
        self, compiled: nn.Module, others: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Callable[[], object]]:
        """Compare what torch.compile made with the model, within the bounds of a deployed module.

        Args:
            compiled: from torch.compile.
            others: the inputs that follow the sample; None for inputs at the smallest and largest sizes, and between.

        Returns:
            functions that repeat the compared calls, in their order; the first is that of the sample.

        Raises:
            ParityError: they differ.
            ExportError: a call of it failed.
        """
        with undisturbed(self.model):
            captured = capture_call(self.model, self.sample, self.entry.axes)
            examples = [*self.ends, self.between] if others is None else list(others)
            answers = _answers(captured, examples, captured.precision)
        runtime = find_tensorrt().name if self.runtime == "tensorrt" else self.runtime
        bounds = Bounds.of(None, captured.precision, runtime)
        report = ParityReport((), "PyTorch vs torch.compile", bounds.tolerance, tuple(answers.notes))
        signature = captured.signature
        names = [spec.name for spec in signature.outputs]
        candidate = captured.reference.of(compiled)
        for case in answers.parity_cases:
            found = outputs_by_name(candidate(case.inputs), signature.output, names)
            sensitivity = case.sensitivity.get(captured.precision)
            report = report.add(compare(case.outputs, found, bounds, case=case.name, sensitivity=sensitivity))
        report.raise_if_failed()
        return [partial(candidate, case.inputs) for case in answers.parity_cases]


def _answers(captured: CapturedCall, examples: list[Mapping[str, Any]], precision: str) -> ReferenceAnswers:
    return answer_parity_cases(with_examples(captured, examples), sensitivity_precisions=(precision,))
