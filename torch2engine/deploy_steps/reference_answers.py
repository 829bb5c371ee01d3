"""The model's answers that every candidate of one deploy is compared with.

Enters: a captured call. Leaves: parity cases with the model's answers, how far rounding moves these, and comparisons
with them. Separate because deploy, export, check and the reuse of an earlier engine run the model in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.rounding_sensitivity import with_sensitivity
from torch2engine.core.config import Tolerances
from torch2engine.deployed.judge import judge
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.parity.parity_report import ParityReport

__all__ = ["ReferenceAnswers", "answer_parity_cases"]


@dataclass(frozen=True)
class ReferenceAnswers:
    """Inputs with the model's answers.

    Args:
        parity_cases: the inputs, the answers, and the sensitivity of each answer.
        notes: on cases that are missing or invented.
    """

    parity_cases: Sequence[ParityCase]
    notes: Sequence[str]

    def compare(self, candidate: ORTModule, tolerance: Tolerances | None) -> ParityReport:
        """Run a candidate on the same inputs, and compare its answers with the model's.

        Args:
            candidate: an ONNX model, as ONNX Runtime runs it.
            tolerance: when answers count as equal; None for the default of the candidate's precision.

        Returns:
            the report; call its `raise_if_failed`.
        """
        return judge(candidate, self.parity_cases, tolerance, self.notes)


def answer_parity_cases(captured: CapturedCall, sensitivity_precisions: Sequence[str]) -> ReferenceAnswers:
    """Run the model on every parity case, and again with inputs and weights that are changed by rounding.

    Call it inside `undisturbed`.

    Args:
        captured: the model's call.
        sensitivity_precisions: the precisions in which candidates will compute. How far their rounding moves the
            answers is measured by `capture.rounding_sensitivity`.

    Raises:
        DynamicAxisError, ExportError: as `make_parity_cases`.
    """
    parity_cases, notes = make_parity_cases(captured)
    return ReferenceAnswers(with_sensitivity(captured, parity_cases, sensitivity_precisions), notes)
