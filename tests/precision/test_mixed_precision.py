"""Which module costs how much in a low type.

Enters: small models with one bad module. Leaves: proof that it is found, and that mixtures are what they say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.precision.graph.mixed_precision import MixedPrecisionModel, relative_error
from torch2engine.precision.graph.tensor_maxima import absolute_maxima


class Detour(nn.Module):
    """Computes x by way of numbers that only float32 holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 3e5 + 1e5) / 3e5


@pytest.fixture(scope="module")
def exported() -> t2e.OnnxArtifact:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Detour(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    return t2e.export(model.eval(), torch.randn(4, 16), {"input": {0: t2e.Axis("n", 1, 4, 8)}})


X = {"input": np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)}


def test_no_switch_is_float32(exported: t2e.OnnxArtifact) -> None:
    """With every module in float32 the answer is the model's own, at other sizes too."""
    session = OrtSession(exported.onnx_path)
    with MixedPrecisionModel(exported.onnx_path, "fp16") as model:
        assert model.modules == ("0", "1", "2", "3", "4", "5")
        for rows in (1, 4, 8):
            x = {"input": np.ones((rows, 16), np.float32) / 3}
            np.testing.assert_allclose(model(x, ())["output"], session(x)["output"], rtol=1e-5, atol=1e-7)


def test_worst_module_comes_first(exported: t2e.OnnxArtifact) -> None:
    """What overflows alone is infinitely wrong; the others round, ReLU does nothing."""
    with MixedPrecisionModel(exported.onnx_path, "fp16") as model:
        errors = model.module_errors([X])
    assert next(iter(errors)) == "2"
    assert errors["2"] == float("inf")
    assert errors["1"] == 0.0
    assert all(1e-5 < errors[module] < 1e-3 for module in "0345")


def test_bfloat16_does_not_overflow(exported: t2e.OnnxArtifact) -> None:
    """The same detour costs digits only."""
    with MixedPrecisionModel(exported.onnx_path, "bf16") as model:
        assert 1e-3 < model.module_errors([X])["2"] < 0.1


def test_kept_nodes_are_never_low(exported: t2e.OnnxArtifact) -> None:
    """What has to stay in float32 has no switch."""
    import onnx

    detour = [
        node.name
        for node in onnx.load(exported.onnx_path).graph.node
        if any(prop.value == "2" for prop in node.metadata_props if prop.key == "torch2engine.module")
    ]
    with MixedPrecisionModel(exported.onnx_path, "fp16", detour) as model:
        assert "2" not in model.modules
        assert relative_error(model(X, ()), model(X, model.modules)) < 1e-3


@pytest.mark.parametrize(("dtype", "least", "most"), [("int8", 1e-3, 5e-2), ("fp8", 5e-3, 1e-1)])
def test_quantised_products_cost_more(exported: t2e.OnnxArtifact, dtype: str, least: float, most: float) -> None:
    """int8 and fp8 touch matrix products alone."""
    maxima = absolute_maxima(exported.onnx_path, [X])
    with MixedPrecisionModel(exported.onnx_path, dtype, (), maxima) as model:
        errors = model.module_errors([X])
    assert {module for module, error in errors.items() if error > 0} == {"0", "3", "5"}
    assert all(least < errors[module] < most for module in "035")


def test_distance_is_a_relative_norm() -> None:
    """NaN and infinities where there were none are infinitely far; masks of -inf in both are not looked at."""
    right = {"y": np.array([3.0, 4.0, -np.inf]), "label": np.array([1, 2])}
    assert relative_error(right, right) == 0
    assert relative_error(right, {**right, "y": np.array([3.0, 4.5, -np.inf])}) == pytest.approx(0.1)
    assert relative_error(right, {**right, "y": np.array([3.0, np.nan, -np.inf])}) == float("inf")
    assert relative_error(right, {**right, "label": np.array([1, 3])}) == 0.5


def test_nothing_is_left_behind(exported: t2e.OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph with the switches goes with the model."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with MixedPrecisionModel(exported.onnx_path, "fp16") as model:
        model(X, ())
    assert not list(tmp_path.iterdir())
