"""Reports on precision: what each module computes in, and what low types cost it.

Enters: small models. Leaves: proof that multiply-adds are counted as they are, and that shares and tables tell them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

import torch2engine as t2e
from tests.support.lowered_models import deployed
from tests.support.onnx_models import FLOAT, save
from tests.support.precision_models import trained
from torch2engine.deployed.made_inputs import zeros
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.precision.calibration import named_arrays
from torch2engine.precision.graph import count_multiply_adds as counting
from torch2engine.precision.graph.count_multiply_adds import count_multiply_adds

Axis = t2e.Axis


class Kinds(nn.Module):
    """One product of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.fc = nn.Linear(6, 5)
        self.rnn = nn.LSTM(5, 7, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.fc(x)
        x = x @ x.transpose(1, 2) @ x
        return self.rnn(x)[0]


@pytest.fixture(scope="module")
def kinds() -> t2e.OnnxArtifact:
    torch.manual_seed(0)
    return t2e.export(Kinds().eval(), torch.randn(2, 4, 9, 9), {"x": {0: Axis("batch", 1, 2, 8)}})


def test_multiply_adds_are_counted(kinds: t2e.OnnxArtifact) -> None:
    """Grouped and transposed convolutions, linear layers, products of activations and an LSTM, at opt."""
    report = t2e.precision_report(kinds)
    found: dict[tuple[str, str], int] = {}
    for one in report.products:
        found[one.module, one.op] = found.get((one.module, one.op), 0) + one.multiply_adds
    batch, pixels = 2, 25
    assert found[("conv", "Conv")] == batch * 8 * 4 * 4 * (2 * 3 * 3)
    assert found[("up", "ConvTranspose")] == batch * 8 * 4 * 4 * (6 * 2 * 2)
    assert found[("fc", "MatMul")] == batch * pixels * 6 * 5
    assert found[("", "MatMul")] == 2 * batch * pixels * pixels * 5
    assert found[("rnn", "LSTM")] == pixels * batch * 2 * 4 * 7 * (5 + 7)
    assert report.share("fp32") == 1.0


def test_einsum_and_gemm_are_counted(tmp_path: Path) -> None:
    """Einsum by its letters, with an ellipsis too; a Gemm whichever way its first matrix lies."""
    nodes = [
        helper.make_node("Einsum", ["a", "b"], ["e"], name="e", equation="...ij,jk->...ik"),
        helper.make_node("Gemm", ["b", "b"], ["g"], name="g", transA=1),
    ]
    ends = {"a": (FLOAT, [2, 3, 4]), "b": (FLOAT, [4, 5])}
    path = save(tmp_path / "m.onnx", nodes, ends, {"e": (FLOAT, [2, 3, 5]), "g": (FLOAT, [5, 5])})
    given = {name: np.ones(shape, np.float32) for name, (_, shape) in ends.items()}
    assert [one.multiply_adds for one in count_multiply_adds(path, given)] == [2 * 3 * 4 * 5, 5 * 4 * 5]


@pytest.mark.parametrize("name", ["vit", "bert", "lstm"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_inferred_shapes_are_those_of_a_run(name: str, precision: str) -> None:
    """Nothing is run to count, but where sizes depend on values."""
    subject = trained(name)
    artifact = deployed(subject, precision, calibration=None)._artifact
    leaves = next(iter(zeros(artifact.signature, artifact.profiles, None, torch.device("cpu"))))
    given = named_arrays(artifact.signature, leaves)
    path = artifact.onnx_path
    assert path is not None
    model = load_model(path)
    inferred = counting._inferred_shapes(model, {key: array.shape for key, array in given.items()})
    names = [
        name
        for node in model.graph.node
        if node.op_type in counting._MULTIPLYING_OPS
        for name in (*node.input, node.output[0])
        if name
    ]
    seen = counting.observed_shapes(path, sorted(set(names)), given)
    known = [name for name in seen if name in inferred]
    assert {name: inferred[name] for name in known} == {name: seen[name] for name in known}
    assert len(known) >= len(seen) - 2


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
def test_shares_are_the_graphs(dtype: str) -> None:
    """The multiply-adds in the low type, and those of what was kept."""
    subject = trained("vit")
    precision = t2e.Precision(dtype, keep_fp32=["head"])
    report = t2e.precision_report(deployed(subject, precision, calibration=subject.data[:2]))
    kept = {one.module for one in report.products if one.precision == "fp32"}
    assert kept == {"head"}
    assert report.share(dtype) > 0.99
    assert math.isclose(report.share(dtype) + report.share("fp32"), 1.0)
    assert str(report).startswith(f"{100 * report.share(dtype):.1f} % of the multiply-adds in {dtype}")
    assert report.to_json()["shares"][dtype] == report.share(dtype)


def test_table_names_modules(kinds: t2e.OnnxArtifact) -> None:
    """One row for each module and precision."""
    assert str(t2e.precision_report(kinds)).splitlines()[:4] == [
        "100.0 % of the multiply-adds in fp32",
        "module   precision  products  multiply-adds",
        "conv     fp32       1         4,608",
        "up       fp32       1         6,144",
    ]


def test_report_of_anything_else_is_refused() -> None:
    """A model that was not deployed has no graph."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.precision_report(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]  # the mistake
    assert str(caught.value) == (
        "precision_report: got a Linear; expected a deployed module or an artifact; deploy the model first"
    )


def test_sensitivity_names_the_planted_overflow() -> None:
    """What writes and what reads the overflow cost everything, each alone, and come first."""
    subject = trained("vit_overflow")
    found = t2e.sensitivity(subject.model, subject.sample, subject.axes, calibration=subject.data[:2])
    errors = list(found.errors.values())
    infinite = [module for module, error in found.errors.items() if error == math.inf]
    assert sorted(infinite) == ["blocks.2.mlp.fc2.narrow", "blocks.2.mlp.fc2.wide"]
    assert errors == sorted(errors, reverse=True)
    lines = str(found).splitlines()
    assert lines[0].split(maxsplit=1) == ["module", "error if it alone is fp16"]
    assert lines[1].split() == [infinite[0], "inf"]


@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8"])
def test_sensitivity_of_other_types(dtype: str) -> None:
    """Without calibration the sample is measured; nothing costs everything."""
    subject = trained("lstm")
    found = t2e.sensitivity(subject.model, subject.sample, subject.axes, precision=dtype)
    assert found.precision == dtype
    worst: Any = max(found.errors.values())
    assert 0 < worst < 0.5


def test_sensitivity_to_float32_is_refused() -> None:
    """There is nothing to ask."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.sensitivity(nn.Linear(2, 2), torch.randn(1, 2), precision="tf32")
    assert str(caught.value) == (
        "precision: got 'tf32'; expected one of 'fp16', 'bf16', 'int8', 'fp8'; pass one of these"
    )
