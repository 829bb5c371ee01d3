"""`torch2engine.modules.judge`: a deployed module against the reference, case by case."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.deploy_models import mlp, sample
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import ParityError
from torch2engine.modules.judge import judge
from torch2engine.parity.report import ParityReport


def test_judge_compares_case_by_case() -> None:
    """A wrong answer in one case fails that case alone."""
    reference, module = mlp()
    good, bad = sample(2, 6), sample(3, 6)
    examples = [
        ParityCase("good", (good,), {"output": reference(good).detach()}),
        ParityCase("bad", (bad,), {"output": reference(bad).detach() + 1}),
    ]
    report = judge(module, examples, notes=["a note"])
    assert [(row.case, row.passed) for row in report.rows] == [("good", True), ("bad", False)]
    assert (report.subject, report.notes) == ("PyTorch vs ONNX Runtime", ("a note",))
    assert report.tolerance == Tolerance.default("fp32")


def test_judge_keeps_the_examples() -> None:
    """ONNX Runtime and the engine are judged on the same tensors, so no candidate may reach them."""
    reference, module = mlp()
    x = sample(3, 6)
    case = ParityCase("one", (x,), {"output": reference(x).detach()})

    class Vandal(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            answer = super().infer(leaves)
            leaves[0].zero_()
            return answer

    assert judge(Vandal(module._artifact), [case]).passed
    assert torch.equal(x, sample(3, 6))


def test_judge_without_cases_has_not_passed() -> None:
    """Nothing compared is nothing proved."""
    report = judge(mlp()[1], [])
    assert report == ParityReport((), "PyTorch vs ONNX Runtime", Tolerance.default("fp32"))
    with pytest.raises(ParityError):
        report.raise_if_failed()
