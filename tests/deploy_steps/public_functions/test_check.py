"""`torch2engine.deploy_steps.public_functions.check`: an artifact against the model that it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import BATCH, Baked, Mlp, sample, seeded
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError, ParityError, ShapeError


def test_check_finds_weights_that_moved_on(exported: OnnxArtifact) -> None:
    """After training the artifact is no longer the model, and the report says so."""
    moved = seeded(Mlp)
    with torch.no_grad():
        moved.second.bias.add_(0.1)
    report = t2e.check(moved, exported, sample(4, 6))
    assert [row.case for row in report.failures] == ["min", "opt", "max", "random"]
    with pytest.raises(ParityError) as caught:
        report.raise_if_failed()
    assert caught.value.report is report


def test_check_finds_a_baked_branch() -> None:
    """The artifact is looked at over the whole of its profiles, not at the sample alone."""
    artifact = t2e.export(Baked(), sample(4, 6), BATCH)
    assert [row.case for row in t2e.check(Baked(), artifact, sample(4, 6)).failures] == ["min"]


def test_check_takes_a_tolerance(model: Mlp, exported: OnnxArtifact) -> None:
    """The tolerance given is the one that judges, and a field that it leaves out is the precision's."""
    exact = Tolerance(rel_l2=0, max_rel=0, abs=0)
    report = t2e.check(model, exported, sample(4, 6), tolerance=exact)
    assert report.tolerance == replace(exact, mismatch=Tolerance.default("fp32").mismatch)
    assert not report.passed


def test_check_of_another_model_fails(exported: OnnxArtifact) -> None:
    """A model that answers in other shapes is no match, and no crash."""
    report = t2e.check(Baked(), exported, sample(4, 6))
    assert {row.reason for row in report.failures if row.case == "max"} == {
        "shape is [8, 3], the reference's is [8, 6]"
    }
    assert len(report.failures) == len(report.rows) == 4


def test_check_refuses_a_sample_of_another_form(model: Mlp, exported: OnnxArtifact) -> None:
    """Names, dtypes, rank and static sizes must be the artifact's."""
    refusals: list[tuple[type[InputError], nn.Module, Any, str]] = [
        (
            InputError,
            seeded(Mlp).double(),
            sample(4, 6).double(),
            "sample_input: got inputs [('x', 'float64')]; expected the artifact's [('x', 'float32')]",
        ),
        (
            InputError,
            deploy_models.Pair(),
            (sample(4, 6), sample(4, 6)),
            (
                "sample_input: got inputs [('a', 'float32'), ('b', 'float32')]; expected the artifact's "
                "[('x', 'float32')]"
            ),
        ),
        (ShapeError, model, sample(6), "input 'x': got shape [6] of 1 dimensions; expected [batch, 6]"),
        (ShapeError, Baked(), sample(4, 7), "input 'x': got dimension 1 = 7; expected [batch, 6]"),
    ]
    for kind, reference, given, text in refusals:
        with pytest.raises(kind) as caught:
            t2e.check(reference, exported, given)
        assert str(caught.value).startswith(text)


def test_check_reads_the_file_and_not_the_model(model: Mlp, tmp_path: Path) -> None:
    """A weight that was changed in the file is found."""
    artifact = t2e.export(model, sample(4, 6))
    graph = onnx.load(artifact.onnx_path)
    weight = next(w for w in graph.graph.initializer if list(w.dims) == [3])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(graph, artifact.onnx_path)
    assert not t2e.check(model, artifact, sample(4, 6)).passed


def test_check_compares_on_examples_instead_of_invented_inputs(model: Mlp, exported: OnnxArtifact) -> None:
    """Real inputs at other sizes, from an iterator; a wrong one is named by its index."""
    report = t2e.check(model, exported, sample(4, 6), examples=iter([sample(2, 6), (sample(8, 6),)]))
    assert report.passed
    assert [row.case for row in report.rows] == ["sample", "example 0", "example 1"]
    assert report.notes == ("no example in the profile has batch = 1, so nothing was compared there",)
    with pytest.raises(ShapeError) as caught:
        t2e.check(model, exported, sample(4, 6), examples=[sample(9, 6)])
    assert str(caught.value).startswith("examples[0], input 'x': got batch = 9; expected 1..8")
