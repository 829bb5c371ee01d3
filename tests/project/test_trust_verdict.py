"""A refusal counts as false unless the engine is shown to be wrong beyond any rounding."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.trust_verdict import engine_fault, is_false_refusal


def stage(error: float, nonfinite: int = 0) -> dict[str, Any]:
    """The figures of one comparison, as far as the verdict reads them."""
    return {"error": error, "nonfinite": nonfinite}


def refused(**stages: Any) -> dict[str, Any]:
    """A refused model with these comparisons."""
    return {"verdict": "refused", "reason": "an output is off", **stages}


FAULTS = {
    "product after relu": ("fp32", refused(onnxruntime=stage(2e-7), engine=stage(0.7))),
    "NaN in the engine alone": ("fp32", refused(onnxruntime=stage(2e-6), engine=stage(0.0, nonfinite=200))),
    "far beyond strict rounding": ("fp16", refused(half_model=3e-3, strict=stage(2e-3), engine=stage(0.19))),
}
FALSE = {
    "rounding that the model amplifies": ("fp16", refused(half_model=0.01, strict=stage(0.02), engine=stage(0.15))),
    "little beyond the tolerance": ("fp32", refused(onnxruntime=stage(1e-8), engine=stage(2e-3))),
    "beyond it in fp16": ("fp16", refused(half_model=1e-3, strict=stage(1e-4), engine=stage(0.03))),
    "a twin that rounds as much": ("fp32", refused(onnxruntime=stage(1e-4), engine=stage(0.05))),
    "a twin that overflows too": ("fp16", refused(half_model=1e-3, strict=stage(0.1, 3), engine=stage(0.0, 3))),
    "no strict twin": ("fp16", refused(half_model=1e-3, onnxruntime=stage(1e-6), engine=stage(0.5))),
    "refused before an engine was built": ("fp32", refused(onnxruntime=stage(0.5))),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refusal_of_a_faulty_engine_is_right_and_has_its_evidence(case: str) -> None:
    """The error of the engine stands beside that of the same graph in ONNX Runtime."""
    precision, found = FAULTS[case]
    assert "in the engine" in engine_fault(found, precision)
    assert "in ONNX Runtime" in engine_fault(found, precision)
    assert not is_false_refusal(found, precision)


@pytest.mark.parametrize("case", FALSE)
def test_refusal_that_rounding_may_explain_is_false(case: str) -> None:
    """Where the twin shows nothing, or rounds as much, the benefit of the doubt is the model's."""
    precision, found = FALSE[case]
    assert engine_fault(found, precision) == ""
    assert is_false_refusal(found, precision)


def test_model_that_passed_or_that_half_precision_cannot_hold_is_no_false_refusal() -> None:
    """There is nothing to explain, or PyTorch's own half model is as wrong."""
    passed = {"verdict": "passed", "onnxruntime": stage(1e-7), "engine": stage(1e-5)}
    assert not is_false_refusal(passed, "fp32")
    assert engine_fault(passed, "fp32") == ""
    assert not is_false_refusal(refused(half_model=0.9, strict=stage(0.9), engine=stage(0.9)), "fp16")
