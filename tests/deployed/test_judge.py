"""`torch2engine.deployed.judge`: a deployed module against the reference, case by case."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.deploy_models import ONNXRUNTIME_TOLERANCE, Mlp, mlp, sample
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import ParityError
from torch2engine.deployed.judge import judge
from torch2engine.parity.parity_report import ParityReport


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
    assert report.tolerance == ONNXRUNTIME_TOLERANCE


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


def test_output_that_no_input_changes_is_weak() -> None:
    """A dead network answers alike whatever comes: its report says so, and is no failure."""
    reference, module = mlp()
    with torch.no_grad():
        answer = reference(sample(2, 6))[:1]
    cases = [ParityCase(str(seed), (sample(1, 6) + seed,), {"output": answer.clone()}) for seed in range(3)]

    class Dead(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            return {"output": answer.clone()}

    report = judge(Dead(module._artifact), cases)
    assert (report.passed, report.verdict) == (True, "weak")
    assert report.weaknesses == {"output": "it is the same for every input"}
    assert judge(Dead(module._artifact), [cases[0], cases[0]]).verdict == "passed"


def two_cases(reference: Mlp) -> list[ParityCase]:
    return [
        ParityCase(name, (x,), {"output": reference(x).detach()})
        for name, x in (("small", sample(2, 6)), ("large", sample(3, 6)))
    ]


@pytest.mark.parametrize(("drift", "call"), [(1.0001, 2), (1.0001, 3), (1.0001, 7), (0.9, 8)])
def test_judge_refuses_a_candidate_that_does_not_repeat_itself(drift: float, call: int) -> None:
    """One call of four answers differently, within the tolerance or not, at once or after the other shapes."""
    reference, module = mlp()
    calls = iter(range(1, 9))

    class Drifting(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            scale = drift if next(calls) == call else 1.0
            return {name: answer * scale for name, answer in super().infer(leaves).items()}

    with pytest.raises(ParityError) as caught:
        judge(Drifting(module._artifact), two_cases(reference), repeats=2)
    case = "small" if call in (2, 3, 7) else "large"
    assert str(caught.value).startswith(
        "parity, ONNX Runtime vs itself: got an engine that does not repeat itself: answers to "
        f"case '{case}' differ by rel_l2 {abs(1 - drift):.1e}"
    )
    assert [row.case for row in caught.value.report.rows] == [case]


def test_judge_passes_repeated_answers_that_differ_by_rounding() -> None:
    """Sums of another order are no other answers; each case is asked four times, and once where nothing repeats."""
    reference, module = mlp()
    calls: list[int] = []

    class Rounding(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            calls.append(len(leaves[0]))
            return {name: answer * (1 + 1e-7 * len(calls)) for name, answer in super().infer(leaves).items()}

    candidate = Rounding(module._artifact)
    assert judge(candidate, two_cases(reference), repeats=2).passed
    assert calls == [2, 2, 2, 3, 3, 3, 2, 3]
    assert judge(candidate, two_cases(reference)).passed
    assert len(calls) == 10


def test_judge_without_cases_has_not_passed() -> None:
    """Nothing compared is nothing proved."""
    report = judge(mlp()[1], [])
    assert report == ParityReport((), "PyTorch vs ONNX Runtime", ONNXRUNTIME_TOLERANCE)
    with pytest.raises(ParityError):
        report.raise_if_failed()


def test_judge_refuses_repeated_nan_for_the_nan() -> None:
    """An engine that overflows in every call repeats itself, and its answers fail against PyTorch's."""
    reference, module = mlp()

    class Overflowing(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            return {name: answer * torch.nan for name, answer in super().infer(leaves).items()}

    report = judge(Overflowing(module._artifact), two_cases(reference), repeats=2)
    assert report.subject == "PyTorch vs ONNX Runtime"
    assert [(row.passed, row.nonfinite_reference) for row in report.rows] == [(False, 0), (False, 0)]
    assert all(row.nonfinite_candidate > 0 for row in report.rows)


def test_failure_on_made_up_integers_names_the_way_out() -> None:
    """Positions of which two are the same have no right answer: the input is at fault, and a real one helps."""
    reference, module = mlp()
    x = sample(3, 6)
    wrong = {"output": reference(x).detach() + 1}
    made_up = [ParityCase("max", (x,), wrong, guessed=("positions",)), ParityCase("opt", (x,), wrong)]
    advice = "pass real inputs as examples=[...], since the values of 'positions' were made up and may not fit together"
    with pytest.raises(ParityError) as error:
        judge(module, made_up).raise_if_failed()
    assert error.value.fix == f"{advice}; if the difference is meant, pass a wider tolerance=Tolerance(...)"
    with pytest.raises(ParityError) as error:
        judge(module, made_up[1:]).raise_if_failed()
    assert error.value.fix == "if the difference is meant, pass a wider tolerance=Tolerance(...)"
