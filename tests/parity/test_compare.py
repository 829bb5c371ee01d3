"""The judge is judged: what is wrong fails, for the right reason, and the report says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.planted_faults import (
    ALLOWED,
    FAULTS,
    FP32,
    HIDDEN,
    garbage,
    judge,
    large,
    movements,
    outputs,
    planted_faults,
    put,
    with_masks,
)
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError, ParityError
from torch2engine.parity import figures as _figures
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport
from torch2engine.parity.tolerance_bounds import Bounds


@pytest.mark.parametrize("block", [_figures._BLOCK, 64], ids=["one block", "many blocks"])
@pytest.mark.parametrize(("fault", "name", "begin", "end"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_planted_fault_fails_with_its_reason(
    fault: Any, name: str, begin: str, end: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No planted fault passes, and the reason says what is wrong, whatever the size of the blocks."""
    monkeypatch.setattr(_figures, "_BLOCK", block)
    reference = outputs()
    report = judge(reference, fault(reference))
    assert not report.passed
    reason = next(row.reason for row in report.failures if row.name == name)
    assert begin in reason
    assert end in reason


@pytest.mark.parametrize("allowed", ALLOWED, ids=str)
def test_planted_fault_fails_at_every_sensitivity(allowed: float) -> None:
    """No fault passes because the model is sensitive, and what the model moves by itself is no fault."""
    for planted in planted_faults(allowed):
        assert not planted.passes(), planted.name
        rows = compare(planted.reference, planted.reference, planted.bounds, sensitivity=planted.sensitivity)
        assert all(row.passed for row in rows), planted.name


def test_same_outputs_pass() -> None:
    """Without a fault the outputs that the faults are planted in pass."""
    report = judge(outputs(), outputs())
    assert report.passed
    assert [row.rel_l2 for row in report.rows] == [0.0] * 6


@pytest.mark.parametrize(
    ("reference", "fault", "tolerance", "reason"), [f[1:] for f in HIDDEN], ids=[f[0] for f in HIDDEN]
)
def test_fault_that_would_drown_fails_with_its_reason(
    reference: Any, fault: Any, tolerance: Tolerance, reason: str
) -> None:
    """What a norm over the whole output would not see fails by the rule that is made for it."""
    report = judge({"y": reference}, {"y": fault(reference.copy())}, tolerance)
    assert not report.passed
    assert reason in report.rows[0].reason


@pytest.mark.parametrize(("reference", "fault", "tolerance"), [f[1:4] for f in HIDDEN], ids=[f[0] for f in HIDDEN])
def test_fault_fails_for_tensors_as_for_arrays(reference: Any, fault: Any, tolerance: Tolerance) -> None:
    """The verdict on torch tensors is the one on the arrays that they were made from."""
    candidate = np.ascontiguousarray(fault(reference.copy()))
    arrays = judge({"y": reference}, {"y": candidate}, tolerance)
    tensors = judge({"y": torch.tensor(reference)}, {"y": torch.tensor(candidate)}, tolerance)
    assert str(tensors) == str(arrays)


@pytest.mark.parametrize("seed", range(200))
def test_random_fault_fails_at_every_tolerance(seed: int) -> None:
    """A random fault of the size of the values, in a random part of a random tensor, never passes."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, rng.integers(1, 5)).tolist())
    reference = (10.0 ** rng.integers(-12, 12) * rng.standard_normal(shape)).astype(np.float32)
    size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    candidate = reference.copy()
    kind = rng.integers(4)
    if kind == 0:
        where = tuple(rng.integers(0, shape).tolist())
        candidate[where] += rng.choice([-1, 1]) * (2 * size + abs(candidate[where]))
    elif kind == 1:
        axis = int(rng.integers(len(shape)))
        part = [slice(None)] * len(shape)
        part[axis] = slice(int(rng.integers(shape[axis])), None)
        candidate[tuple(part)] -= 3 * size
    elif kind == 2:
        candidate = -candidate
    else:
        candidate[...] = rng.choice([0.0, 3 * size, np.inf, np.nan])
    precision = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")[rng.integers(6)]
    report = judge({"y": reference}, {"y": candidate}, Tolerance.default(precision))
    assert not report.passed, str(report)


def test_same_nan_and_inf_pass_and_are_counted() -> None:
    """NaN and Inf at the same places pass; the row says how many there are."""
    reference = with_masks(-np.inf)
    reference[0, 0] = np.nan
    row = judge({"y": reference}, {"y": reference.copy()}).rows[0]
    assert (row.passed, row.nonfinite_reference, row.nonfinite_candidate) == (True, 385, 385)


def test_figures_are_absent_where_nothing_was_compared() -> None:
    """Without a finite pair of elements no figure is made up, and none is hinted at."""
    row = judge({"y": with_masks(0.0)}, {"y": with_masks(0.0) * np.nan}).rows[0]
    assert row.reason.startswith("1024 elements are NaN or Inf in one only, the first at [0, 0]: nan, expected -0.65")
    assert row.reason.endswith("expected -0.651791")
    assert (row.nonfinite_reference, row.nonfinite_candidate) == (0, 1024)
    assert all(math.isnan(figure) for figure in (row.max_abs, row.max_rel, row.rel_l2, row.cosine))


def test_empty_and_empty_pass() -> None:
    """An output without elements passes if shape and dtype agree, and has no figures."""
    row = compare({"y": np.zeros((0, 4))}, {"y": np.zeros((0, 4))}, FP32)[0]
    assert row.passed
    assert math.isnan(row.rel_l2)
    assert not compare({"y": np.zeros((0, 4))}, {"y": np.zeros((0, 5))}, FP32)[0].passed


def saturated() -> Any:
    return np.eye(10, dtype=np.float32)[np.arange(50) % 10]


def dead() -> Any:
    array = np.zeros((8, 400), np.float32)
    array[3, 5] = 0.7
    return array


@pytest.mark.parametrize(
    ("answer", "weakness"),
    [
        (np.full((4, 4), np.nan, np.float32), "no element of it is finite"),
        (np.full((4, 4), -np.inf, np.float32), "no element of it is finite"),
        (np.zeros((4, 4), np.float32), "it is all zeros"),
        (np.full((4, 4), 0.25, np.float32), "it is 0.25 throughout"),
        (np.zeros((30,), np.int64), "it is all zeros"),
        (np.full((2,), 3.0, np.float32), "it is 3 throughout"),
        (np.zeros((0, 4), np.float32), "it has no elements"),
        (saturated(), "every element is 0 or 1, as after a saturated softmax or sigmoid"),
        (dead(), "1 of it is 0, as behind dead ReLUs"),
        (large()[:1].repeat(6, 0), "all its rows are equal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answer_that_proves_nothing_is_weak(answer: Any, weakness: str) -> None:
    """What equal answers don't prove is said, and `passed` stays a bool."""
    report = judge({"y": answer}, {"y": answer.copy()})
    assert (report.passed, report.verdict, report.weaknesses) == (True, "weak", {"y": weakness})
    assert str(report).startswith("PyTorch vs a candidate: weak, 1 of 1 outputs passed")
    assert f"warning: parity proves little for output 'y': {weakness}; trained weights, or inputs" in str(report)


def test_sensitivity_that_allows_much_is_weak() -> None:
    """A model that rounding moves by a percent can't be told from a wrong one."""
    reference = {"y": large()[:4]}
    rows = compare(reference, reference, Bounds.of(None, "fp32", "onnxruntime"), sensitivity=movements(reference, 5e-3))
    report = ParityReport(rows, "a vs b", FP32)
    assert report.verdict == "weak"
    assert report.weaknesses["y"].startswith("rounding alone moves it by 0.005 of its size, so that an error of 0.0")


def test_rounding_noise_around_zero_passes_within_abs() -> None:
    """An output that is nothing but noise is held to `abs`; one that is tiny and means something is not."""
    bounds = Bounds.of(None, "fp32", "onnxruntime")
    rng = np.random.default_rng(0)
    noise = (6e-8 * rng.integers(-2, 3, (9, 8))).astype(np.float32)
    other = (6e-8 * rng.integers(-2, 3, (9, 8))).astype(np.float32)
    moved = {"y": np.full((9, 8), 7e-8)}
    (row,) = compare({"y": noise}, {"y": other}, bounds, sensitivity=moved)
    assert row.passed, row.reason
    assert row.weakness
    assert not compare({"y": noise}, {"y": other + np.float32(1e-5)}, bounds, sensitivity=moved)[0].passed
    stable = {"y": np.full((9, 8), 1e-14)}
    assert not compare({"y": noise}, {"y": other}, bounds, sensitivity=stable)[0].passed


def test_case_that_proves_something_is_enough() -> None:
    """An output is weak only if it is so in every case, and a failure is no weakness."""
    zeros = {"y": np.zeros((4, 4), np.float32)}
    report = judge(zeros, zeros)
    other = {"y": large()[:1]}
    assert report.add(compare(other, other, FP32, case="opt")).verdict == "passed"
    assert report.add(compare(other, zeros, FP32, case="opt")).verdict == "failed"
    assert ParityReport((), "a vs b", FP32).verdict == "failed"


def test_zeros_within_abs_pass() -> None:
    """A reference of zeros allows differences up to abs and none above."""
    zeros = np.zeros((4, 4), np.float32)
    assert compare({"y": zeros}, {"y": zeros + 9e-7}, FP32)[0].passed
    assert not compare({"y": zeros}, {"y": zeros + 2e-6}, FP32)[0].passed


def test_argmax_near_ties_pass_with_mismatch() -> None:
    """A share of labels may differ where the tolerance says so."""
    reference = np.random.default_rng(0).integers(0, 1000, (100, 100))
    candidate = reference.copy()
    candidate[::10, 7] += 1
    assert compare({"y": reference}, {"y": candidate}, Tolerance(mismatch=0.001))[0].passed
    assert not compare({"y": reference}, {"y": candidate}, Tolerance(mismatch=0.0009))[0].passed


def test_tolerance_of_zero_asks_for_equality() -> None:
    """With all bounds at 0 the same bits pass and the next float fails."""
    exact = Tolerance(rel_l2=0, max_rel=0, abs=0)
    reference = large()[:2]
    assert compare({"y": reference}, {"y": reference.copy()}, exact)[0].passed
    candidate = reference.copy()
    candidate[1, 7] = np.nextafter(candidate[1, 7], np.float32(9))
    assert not compare({"y": reference}, {"y": candidate}, exact)[0].passed


def test_dtype_without_numbers_fails() -> None:
    """What holds no numbers is not waved through."""
    words = np.array(["a", "b"])
    assert compare({"y": words}, {"y": words}, FP32)[0].reason == f"dtype {words.dtype.name} can't be compared"


def test_sparse_tensor_fails() -> None:
    """A sparse tensor is not what a dense one is, and is not compared."""
    dense = torch.eye(3)
    row = compare({"y": dense}, {"y": dense.to_sparse()}, FP32)[0]
    assert row.reason == "the candidate is a sparse_coo tensor, only dense ones can be compared"


def test_inputs_are_not_written_to() -> None:
    """The judge only reads."""
    reference, candidate = outputs(), put("start", garbage)(outputs())
    for array in (*reference.values(), *candidate.values()):
        array.flags.writeable = False
    assert not judge(reference, candidate).passed


def test_report_without_rows_has_not_passed() -> None:
    """A report that compared nothing never passes."""
    report = ParityReport((), "PyTorch vs TensorRT", FP32)
    assert not report.passed
    assert report.worst is None
    with pytest.raises(ParityError) as caught:
        report.raise_if_failed()
    assert str(caught.value) == (
        "parity, PyTorch vs TensorRT: got no comparison; expected answers within the tolerance; "
        "compare one case at least\n"
        "PyTorch vs TensorRT: FAILED, nothing was compared "
        "(allowed: rel_l2 0.00025, max_rel 0.001, abs 1e-06, mismatch 0)\n"
        "case  output  tensor  rel-l2  allowed  sensitivity  max-abs  max-rel  cosine  worst  verdict"
    )
    assert not judge({}, {}).passed


def test_report_collects_cases() -> None:
    """Rows of several cases add up, notes too; reports judged by different tolerances don't."""
    y = {"y": large()[:1]}
    report = ParityReport((), "a vs b", FP32)
    for case in ("min", "opt"):
        report = report.add(compare(y, y, FP32, case=case), notes=[f"ran {case}"])
    both = report.merge(judge(y, {"y": -y["y"]}))
    assert [(row.case, row.passed) for row in both.rows] == [("min", True), ("opt", True), ("max", False)]
    assert (report.passed, both.passed, report.notes) == (True, False, ("ran min", "ran opt"))
    assert both.worst is both.rows[2]
    other = Tolerance(rel_l2=0.5)
    with pytest.raises(InputError) as caught:
        report.merge(judge(y, y, other))
    assert str(caught.value) == (
        f"ParityReport.merge: got a report judged by {other}; expected one judged by {FP32}; compare "
        "both with one tolerance"
    )


def test_worst_is_an_unmeasured_failure_before_a_measured_one() -> None:
    """A missing output is worse than any figure, and an empty one that passed is not."""
    rows = (
        OutputParity("passed", "", True, rel_l2=1e-6),
        OutputParity("empty", "", True),
        OutputParity("failed", "", False, "bad", rel_l2=9.0),
        OutputParity("missing", "", False, "missing"),
    )
    names: list[str] = []
    while rows:
        worst = ParityReport(rows, "a vs b", FP32).worst
        assert worst is not None
        names.append(worst.name)
        rows = tuple(row for row in rows if row is not worst)
    assert names == ["missing", "failed", "passed", "empty"]


def failing_report() -> ParityReport:
    reference = {
        "logits": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "label": np.array([1, 1]),
        "mask": np.array([0.0, -np.inf], np.float16),
        "aux": np.zeros((0, 3), np.float32),
    }
    candidate = {**reference, "logits": np.array([[1.0, 2.0], [3.0, 4.5]], np.float32)}
    tolerance = replace(FP32, mismatch=0.5)
    rows = compare(reference, {**reference, "label": np.array([1, 0])}, tolerance, case="min")
    report = ParityReport(rows, "PyTorch vs TensorRT", tolerance, ("TF32 is off",))
    del candidate["aux"]
    return report.add(compare(reference, candidate, tolerance, case="max"))


def test_table_shows_every_row() -> None:
    """Printed, the report is this table."""
    assert str(failing_report()).splitlines() == [
        "PyTorch vs TensorRT: FAILED, 6 of 8 outputs passed "
        "(allowed: rel_l2 0.00025, max_rel 0.001, abs 1e-06, mismatch 0.5)",
        "case  output  tensor         rel-l2    allowed   sensitivity  max-abs   max-rel   cosine    worst  verdict",
        "min   logits  float32[2, 2]  0.00e+00  2.50e-04  -            0.00e+00  0.00e+00  1.000000  [0,0]  passed",
        "min   label   int64[2]       7.07e-01  -         -            1.00e+00  5.00e-01  0.707107  [1]    "
        "weak: it is 1 throughout (0.5 of the elements differ)",
        "min   mask    float16[2]     0.00e+00  2.50e-04  -            0.00e+00  0.00e+00  1.000000  [0]    "
        "passed (1 NaN or Inf in both)",
        "min   aux     float32[0, 3]  -         -         -            -         -         -         -      "
        "weak: it has no elements",
        "max   logits  float32[2, 2]  9.13e-02  2.50e-04  -            5.00e-01  7.42e-02  0.998295  [1,1]  "
        "FAILED: relative L2 is 0.0913, at most 0.00025 is allowed",
        "max   label   int64[2]       0.00e+00  -         -            0.00e+00  0.00e+00  1.000000  [0]    "
        "weak: it is 1 throughout",
        "max   mask    float16[2]     0.00e+00  2.50e-04  -            0.00e+00  0.00e+00  1.000000  [0]    "
        "passed (1 NaN or Inf in both)",
        "max   aux     float32[0, 3]  -         -         -            -         -         -         -      "
        "FAILED: missing from the candidate",
        "warning: parity proves little for output 'label': it is 1 throughout; "
        "trained weights, or inputs of your own with examples=[...], prove more",
        "warning: parity proves little for output 'aux': it has no elements; "
        "trained weights, or inputs of your own with examples=[...], prove more",
        "note: TF32 is off",
    ]


def test_failure_names_outputs_cases_and_reasons() -> None:
    """The error's first line says which outputs of which cases failed and why; the table follows."""
    report = failing_report()
    with pytest.raises(ParityError) as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    first, rest = str(caught.value).split("\n", 1)
    assert first == (
        "parity, PyTorch vs TensorRT: got output 'logits' of case 'max': relative L2 is 0.0913, "
        "at most 0.00025 is allowed | output 'aux' of case 'max': missing from the candidate; "
        "expected answers within the tolerance; if the "
        "difference is meant, pass a wider tolerance=Tolerance(...)"
    )
    assert rest == str(report)


def test_failure_of_many_outputs_names_the_first() -> None:
    """With many failures the first line stays readable and counts the rest; the table has them all."""
    report = judge({f"y{number}": np.ones(3) for number in range(9)}, {})
    with pytest.raises(ParityError) as caught:
        report.raise_if_failed()
    first, rest = str(caught.value).split("\n", 1)
    assert (
        "output 'y3' of case 'max': missing from the candidate | and 5 more; expected answers within "
        "the tolerance; if the difference"
    ) in first
    assert rest.count("FAILED: missing") == 9


def test_json_holds_finite_numbers_or_null() -> None:
    """The report as JSON is strict JSON: what is not finite is null."""
    data = json.loads(json.dumps(failing_report().to_json(), allow_nan=False))
    assert (data["subject"], data["passed"], data["notes"]) == ("PyTorch vs TensorRT", False, ["TF32 is off"])
    assert data["tolerance"] == {"rel_l2": 2.5e-4, "max_rel": 1e-3, "abs": 1e-6, "mismatch": 0.5}
    assert [row["name"] for row in data["rows"]] == ["logits", "label", "mask", "aux"] * 2
    assert data["rows"][7]["rel_l2"] is None
    assert data["rows"][7]["reason"] == "missing from the candidate"
    assert (data["rows"][4]["worst_index"], data["rows"][4]["candidate_value"]) == ([1, 1], 4.5)
    complex_row = judge({"y": np.array([1j])}, {"y": np.array([np.inf * 1j])}).to_json()["rows"][0]
    assert (complex_row["reference_value"], complex_row["candidate_value"]) == ([0.0, 1.0], [None, None])


def test_default_tolerance_of_unknown_precision_is_refused() -> None:
    """A precision without a default is an error that lists those that have one."""
    with pytest.raises(InputError) as caught:
        Tolerance.default("fp12")
    assert str(caught.value) == (
        "precision: got 'fp12'; expected one of 'fp32', 'tf32', 'fp16', 'bf16', 'int8', 'fp8'; did you mean 'fp32'?"
    )
