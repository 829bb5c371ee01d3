"""float16 and bfloat16 graphs by AutoCast.

Enters: a small exported model. Leaves: proof that what is asked to stay stays, that names and origins do, and that
nothing is said or left behind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import torch2engine as t2e
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.onnx_graph.node_origins import node_modules, node_origins
from torch2engine.precision.graph import cast as room
from torch2engine.precision.graph.cast import cast_graph, nodes_out_of_range

LIMIT = PRECISION_TYPES["fp16"].largest_kept
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = pytest.mark.parametrize("dtype", sorted(LOW))


@pytest.fixture(scope="module")
def artifact() -> t2e.OnnxArtifact:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(32, 10)).eval()
    return t2e.export(model, torch.randn(2, 3, 8, 8), {"input": {0: t2e.Axis("batch", 1, 2, 8)}})


def types(model: Any) -> dict[str, int]:
    """Element type by tensor, weights too."""
    graph = model.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@DTYPES
def test_graph_is_typed_and_its_ends_are_not(artifact: t2e.OnnxArtifact, tmp_path: Path, dtype: str) -> None:
    """Weights and tensors inside are low; inputs and outputs keep names, dtypes and dynamic axes."""
    cast_graph(artifact.onnx_path, tmp_path / "low.onnx", dtype)
    before, after = load_model(artifact.onnx_path), load_model(tmp_path / "low.onnx")
    onnx.checker.check_model(after)
    ends = [[*model.graph.input, *model.graph.output] for model in (before, after)]
    assert [(end.name, end.type) for end in ends[0]] == [(end.name, end.type) for end in ends[1]]
    found = types(after)
    assert {found[name] for name in ("0.weight", "4.weight", "6.weight", "relu", "gelu")} == {LOW[dtype]}
    assert list(tmp_path.iterdir()) == [tmp_path / "low.onnx"]


@DTYPES
def test_kept_nodes_stay_in_float32(artifact: t2e.OnnxArtifact, tmp_path: Path, dtype: str) -> None:
    """By their whole names: `node_linear` alone, not `node_linear_1` with it."""
    cast_graph(artifact.onnx_path, tmp_path / "low.onnx", dtype, float32_nodes=["node_linear"])
    found = types(load_model(tmp_path / "low.onnx"))
    assert (found["4.weight"], found["6.weight"]) == (TensorProto.FLOAT, LOW[dtype])


def test_ends_become_low_when_asked(artifact: t2e.OnnxArtifact, tmp_path: Path) -> None:
    """low_io gives the model's own inputs and outputs the type."""
    cast_graph(artifact.onnx_path, tmp_path / "low.onnx", "fp16", low_io=True)
    found = types(load_model(tmp_path / "low.onnx"))
    assert (found["input"], found["output"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)


@DTYPES
def test_nodes_keep_names_and_origins(artifact: t2e.OnnxArtifact, tmp_path: Path, dtype: str) -> None:
    """Every node says which module it comes from, casts that of a neighbour."""
    cast_graph(artifact.onnx_path, tmp_path / "low.onnx", dtype, float32_nodes=["node_linear"])
    before, after = node_origins(load_model(artifact.onnx_path)), load_model(tmp_path / "low.onnx")
    found = node_origins(after)
    assert {name: found[name] for name in before} == before
    casts = [node.name for node in after.graph.node if node.op_type == "Cast"]
    assert len(casts) >= 3
    assert {node_modules(after)[name] for name in casts} <= {"0", "1", "3", "4", "5", "6"}


def test_values_out_of_range_are_found(artifact: t2e.OnnxArtifact) -> None:
    """A node counts by its inputs and its outputs; bfloat16 has nearly float32's range, but not its lowest value."""
    maxima = {"input": 1.0, "relu": LIMIT, "linear": LIMIT * 1.01}
    assert nodes_out_of_range(artifact.onnx_path, "fp16", maxima) == {
        "node_linear": LIMIT * 1.01,
        "node_gelu": LIMIT * 1.01,
    }
    assert nodes_out_of_range(artifact.onnx_path, "bf16", maxima) == {}
    assert set(nodes_out_of_range(artifact.onnx_path, "bf16", {"linear": 3.4028e38})) == {"node_linear", "node_gelu"}
    assert nodes_out_of_range(artifact.onnx_path, "fp32", {"linear": 1e38}) == {}


def test_modelopt_says_nothing(artifact: t2e.OnnxArtifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither its log nor its warnings reach the user."""
    cast_graph(artifact.onnx_path, tmp_path / "low.onnx", "fp16", float32_nodes=["node_linear"])
    assert capfd.readouterr() == ("", "")


def test_missing_modelopt_is_told(artifact: t2e.OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error has the line that installs it, and nothing is written."""
    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", None)
    with pytest.raises(t2e.InstallationError) as caught:
        cast_graph(artifact.onnx_path, tmp_path / "low.onnx", "fp16")
    assert str(caught.value).startswith("nvidia-modelopt: got no module that can be imported (")
    assert str(caught.value).endswith("; pip install 'torch2engine[quantize]'")
    assert not list(tmp_path.iterdir())


def test_modelopts_failure_is_told(artifact: t2e.OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises becomes an ExportError in its own words."""
    monkeypatch.setattr(room, "np", None)  # any failure inside
    with pytest.raises(t2e.ExportError) as caught:
        cast_graph(artifact.onnx_path, tmp_path / "low.onnx", "fp16")
    assert 'a failure of ModelOpt: "AttributeError' in str(caught.value)
    assert not list(tmp_path.iterdir())
