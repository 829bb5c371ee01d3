"""`torch2engine.pipeline.deploy_report`: the account of a deploy, as text, as JSON, and its clock."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from torch2engine.core.config import Tolerance
from torch2engine.core.errors import BuildError
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.pipeline.deploy_report import DeployReport, ReportBuilder
from torch2engine.precision.graph.multiply_adds import MultiplyAddNode, PrecisionReport

TOLERANCE = Tolerance(rel_l2=1e-3, max_rel=1e-2, abs=1e-6, mismatch=0)


def table(subject: str, scale: float = 1.0) -> ParityReport:
    """One output of one case."""
    x = np.arange(1, 5, dtype=np.float32)
    return ParityReport(compare({"y": x}, {"y": x * scale}, TOLERANCE, case="min"), subject, TOLERANCE)


def test_text_has_precision_memory_phases_tables_and_notes() -> None:
    """The whole text, to the letter."""
    report = DeployReport(
        parity=(table("PyTorch vs ONNX Runtime"), table("PyTorch vs TensorRT")),
        seconds={"capture": 0.04, "build": 12.36},
        precision="tf32",
        memory_bytes=3 * 2**20,
        notes=("the model writes into its input 'x'", "and another"),
    )
    rows = [
        "case  output  tensor      rel-l2    allowed   sensitivity  max-abs   max-rel   cosine    worst  verdict",
        "min   y       float32[4]  0.00e+00  1.00e-03  -            0.00e+00  0.00e+00  1.000000  [0]    passed",
    ]
    bounds = "(allowed: rel_l2 0.001, max_rel 0.01, abs 1e-06, mismatch 0)"
    assert str(report).splitlines() == [
        "tf32, 3 MiB working memory; capture 0.0 s, build 12.4 s",
        f"PyTorch vs ONNX Runtime: passed, 1 of 1 outputs passed {bounds}",
        *rows,
        f"PyTorch vs TensorRT: passed, 1 of 1 outputs passed {bounds}",
        *rows,
        "note: the model writes into its input 'x'",
        "note: and another",
    ]


def test_text_leaves_out_memory_on_the_cpu() -> None:
    """Nothing is said about device memory where there is none."""
    report = DeployReport(parity=(table("a vs b"),), seconds={"check": 1.0}, precision="fp32")
    assert str(report).startswith("fp32; check 1.0 s\na vs b: passed")


def test_text_and_json_tell_what_the_engine_computes_in() -> None:
    """Between the graph's account and the comparisons."""
    products = (
        MultiplyAddNode("a", "Gemm", "head", "fp16", 30, "fp16"),
        MultiplyAddNode("b", "Conv", "stem", "fp16", 10, "fp32"),
    )
    computed = PrecisionReport(products, {"fp16": 3, "fp32": 1})
    report = DeployReport(parity=(table("a vs b"),), seconds={"check": 1.0}, precision="fp16", computed=computed)
    assert str(report).splitlines()[1] == (
        "engine: 75.0 % of the multiply-adds in fp16, 25.0 % of the multiply-adds in fp32; layers: 3 in fp16, 1 in fp32"
    )
    assert json.loads(json.dumps(report.to_json()))["computed"]["shares"] == {"fp16": 0.75, "fp32": 0.25}


def test_json_has_every_field() -> None:
    """What is printed is there as data, and no field is forgotten."""
    report = DeployReport(
        parity=(table("a vs b"),), seconds={"check": 1.5}, precision="fp16", memory_bytes=7, notes=("n",)
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(data) == {field.name for field in dataclasses.fields(DeployReport)}
    assert data["parity"] == [json.loads(json.dumps(table("a vs b").to_json()))]
    assert (data["seconds"], data["precision"], data["memory_bytes"], data["notes"]) == (
        {"check": 1.5},
        "fp16",
        7,
        ["n"],
    )


@pytest.mark.parametrize(
    ("parity", "passed"),
    [
        ((), False),
        ((table("a vs b"),), True),
        ((table("a vs b"), table("a vs c", scale=1.5)), False),
        ((table("a vs b"), ParityReport((), "a vs c", TOLERANCE)), False),
    ],
    ids=["nothing", "passed", "one failed", "one empty"],
)
def test_report_passes_only_if_every_comparison_did(parity: tuple[ParityReport, ...], passed: bool) -> None:
    """What was not compared has not passed."""
    assert DeployReport(parity=parity, seconds={}, precision="fp32").passed is passed


def test_verdict_is_that_of_the_weakest_comparison() -> None:
    """One comparison that proves little makes the whole weak, and one that failed makes it fail."""
    zeros = {"y": np.zeros(4, np.float32)}
    weak = ParityReport(compare(zeros, zeros, TOLERANCE), "a vs z", TOLERANCE)
    strong = table("a vs b")
    assert DeployReport(parity=(strong,), seconds={}, precision="fp32").verdict == "passed"
    assert DeployReport(parity=(strong, weak), seconds={}, precision="fp32").verdict == "weak"
    assert DeployReport(parity=(weak, table("a vs c", scale=1.5)), seconds={}, precision="fp32").verdict == "failed"


def test_phases_measure_their_bodies_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase has its own seconds, in the order in which they began."""
    ticks = iter([1.0, 3.5, 4.0, 4.25])
    monkeypatch.setattr("torch2engine.pipeline.deploy_report.time.perf_counter", lambda: next(ticks))
    builder = ReportBuilder()
    with builder.phase("first"):
        pass
    with builder.phase("second"):
        pass
    builder.add_parity(table("a vs b"))
    builder.add_notes(["n"])
    report = builder.build("fp32", 5)
    assert list(report.seconds.items()) == [("first", 2.5), ("second", 0.25)]
    assert (report.precision, report.notes, report.memory_bytes) == ("fp32", ("n",), 5)


def test_phases_count_a_body_that_fails() -> None:
    """The time until an error is time too."""
    builder = ReportBuilder()
    with pytest.raises(KeyError), builder.phase("broken"):
        raise KeyError
    assert list(builder.build("fp32").seconds) == ["broken"]


def test_report_does_not_change_afterwards() -> None:
    """A report that was handed out is a value; later phases don't reach it."""
    builder = ReportBuilder()
    with builder.phase("one"):
        pass
    report = builder.build("fp32")
    with builder.phase("two"):
        pass
    assert list(report.seconds) == ["one"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.precision = "fp16"  # type: ignore[misc]


def test_phase_that_does_not_happen_leaves_no_trace() -> None:
    """Its body runs all the same."""
    builder = ReportBuilder()
    ran: list[int] = []
    with builder.phase("precision", is_reported=False):
        ran.append(1)
    assert ran == [1]
    assert builder.build("fp32").seconds == {}


def test_copy_of_a_builder_goes_its_own_way() -> None:
    """What a failed attempt adds to a copy is not in the report."""
    builder = ReportBuilder()
    builder.add_notes(["one"])
    builder.add_parity(table("a vs b"))
    with builder.phase("capture"):
        pass
    attempt = builder.copy()
    attempt.add_notes(["two"])
    attempt.add_parity(table("a vs c"))
    attempt.add_reusable_findings({"outcome": None, "computed": PrecisionReport((), {}).to_json(), "notes": ["three"]})
    with attempt.phase("parity"):
        pass
    report = builder.build("fp32")
    assert (report.notes, len(report.parity), list(report.seconds), report.computed) == (("one",), 1, ["capture"], None)
    other = attempt.build("fp32")
    assert (other.notes, len(other.parity), list(other.seconds)) == (("one", "two", "three"), 2, ["capture", "parity"])


def test_phases_are_reported_with_the_steps_inside_them() -> None:
    """A phase begins and ends; what is reported meanwhile goes to the same callable, and the clock is one."""
    events: list[tuple[str, int, int]] = []
    seconds: list[float] = []

    def listen(phase: str, step: int, steps: int, since_start: float) -> None:
        events.append((phase, step, steps))
        seconds.append(since_start)

    builder = ReportBuilder(listen)
    forward = builder.progress
    assert forward is not None
    with builder.phase("export"):
        pass
    with builder.phase("build"):
        forward("optimizing", 1, 4, 0.5)
        with builder.copy().phase("parity"):
            pass
    with builder.phase("precision", is_reported=False):
        pass
    assert events == [
        ("export", 0, 1),
        ("export", 1, 1),
        ("build", 0, 1),
        ("optimizing", 1, 4),
        ("parity", 0, 1),
        ("parity", 1, 1),
        ("build", 1, 1),
    ]
    assert seconds[0] <= seconds[1] <= seconds[2] <= seconds[-1]
    assert list(builder.build("fp32").seconds) == ["export", "build"]


@pytest.mark.parametrize("progress", [None, False, True])
def test_nobody_is_told_where_nobody_looks(progress: bool | None) -> None:
    """Without a callable, and without a terminal, the builder of engines reports nothing either."""
    assert ReportBuilder(progress).progress is None


def test_false_cancels_at_the_next_phase() -> None:
    """The error names the phase, and how to go on."""
    builder = ReportBuilder(lambda phase, step, steps, seconds: phase != "check")
    with builder.phase("export"):
        pass
    with pytest.raises(BuildError) as caught, builder.phase("check"):
        pass
    assert str(caught.value) == (
        "deploy: got False from progress in 'check'; expected another value, since False cancels; return None to go on"
    )


def test_seconds_of_a_phase_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """INFO on the logger torch2engine.deploy tells how far a deploy is."""
    with caplog.at_level("INFO", logger="torch2engine.deploy"), ReportBuilder().phase("export"):
        pass
    assert caplog.messages == ["export: 0.0 s"]
