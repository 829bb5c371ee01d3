"""`torch2engine.deployed.deploy_report`: what a deploy found, as text, as JSON, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torch2engine as t2e
from tests.support.deploy_models import Mlp, mlp, sample
from tests.support.parity_tables import TOLERANCE, table
from torch2engine.core.errors import ArtifactError
from torch2engine.core.finding import Finding
from torch2engine.core.precision_report import MultiplyAddNode, PrecisionReport
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport


def test_text_has_precision_memory_phases_tables_and_notes() -> None:
    """The whole text, to the letter."""
    report = DeployReport(
        parity=(table("PyTorch vs ONNX Runtime"), table("PyTorch vs TensorRT")),
        seconds={"capture": 0.04, "build": 12.36},
        precision="tf32",
        memory_bytes=3 * 2**20,
        notes=("the model writes into its input 'x'", "and another"),
        findings=(Finding(name="small batch", measured="1 entry", why="It is slow", suggestion="8"),),
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
        "small batch: 1 entry. It is slow. Try: 8",
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


def test_report_without_comparisons_says_so() -> None:
    """It has neither passed nor failed, and its text says why."""
    report = DeployReport.of_nothing("fp32")
    assert (report.passed, report.verdict) == (False, "not compared")
    assert str(report) == (
        "fp32; not compared\nnote: nothing was compared: this engine comes without the report of a deploy"
    )


def test_json_gives_the_report_back() -> None:
    """Figures, places, complex values and what could not be measured come back as they were."""
    rows = (
        OutputParity("a", "min", True, shape=(2, 3), dtype="complex64", rel_l2=1e-7, worst_index=(1, 2)),
        OutputParity("b", "max", False, reason="it differs", reference_value=1 + 2j, candidate_value=7),
    )
    computed = PrecisionReport((MultiplyAddNode("n", "Gemm", "head", "fp16", 30, "fp16"),), {"fp16": 1})
    report = DeployReport(
        parity=(ParityReport(rows, "a vs b", TOLERANCE, ("n",)),),
        seconds={"check": 1.5},
        precision="fp16",
        memory_bytes=7,
        notes=("one",),
        computed=computed,
        findings=(Finding(name="small batch", measured="1 entry", why="It is slow", suggestion="8"),),
    )
    data = json.loads(json.dumps(report.to_json()))
    again = DeployReport.from_json(data, None, PrecisionReport.from_json(data["computed"]))
    assert str(again) == str(report)
    assert again.to_json() == report.to_json()
    assert again.findings == report.findings
    assert again.parity[0].rows[1].reference_value == 1 + 2j
    assert math.isnan(again.parity[0].rows[1].rel_l2)


def test_report_is_saved_and_loaded_with_the_module(tmp_path: Path) -> None:
    """Who loads a module sees what deploy found; an artifact that was only exported has nothing to show."""
    _, module = mlp()
    loaded = t2e.load(module.save(tmp_path / "model.t2e"))
    assert str(loaded.report) == str(module.report)
    assert loaded.report.verdict == "passed"
    again = t2e.load(loaded.save(tmp_path / "again.t2e"))
    assert again.report == loaded.report
    exported = t2e.export(Mlp(), sample(2, 6)).save(tmp_path / "exported.t2e")
    assert t2e.load(exported).report == DeployReport.of_nothing("fp32")


@pytest.mark.parametrize("report", [{}, {"lowering": None, "computed": None, "parity": 3}, [1]])
def test_report_of_another_form_is_refused(report: Any, tmp_path: Path) -> None:
    """A saved report that this version can't read is an ArtifactError with a cure."""
    _, module = mlp()
    artifact = t2e.OnnxArtifact.load(module.save(tmp_path / "model.t2e")).with_report(report)
    artifact.save(tmp_path / "model.t2e")
    with pytest.raises(ArtifactError, match="save the deployed module again"):
        t2e.load(tmp_path / "model.t2e")
