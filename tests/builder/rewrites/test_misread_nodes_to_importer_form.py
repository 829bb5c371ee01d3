"""What an importer may misread is respelled for the parser alone; TensorRT reads both spellings in the same sense."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest
from onnx import helper

from tests.builder.rewrites.builder_input import changed_by
from tests.support import onnx_models
from torch2engine.builder import plan
from torch2engine.builder.rewrites.misread_nodes_to_importer_form import IMPORTER_FAULTS, importer_form
from torch2engine.core.errors import BuildError
from torch2engine.trt.bindings import find_tensorrt, make_network

FLOAT = onnx_models.FLOAT


def sampler(folder: Path, mode: str | None) -> Path:
    """y = grid_sample(x, grid)."""
    options = {} if mode is None else {"mode": mode}
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], name="sample", **options)
    inputs = {"x": (FLOAT, [1, 2, 4, 4]), "grid": (FLOAT, [1, 3, 3, 2])}
    return onnx_models.save(folder / "sampler.onnx", [node], inputs, {"y": (FLOAT, [1, 2, 3, 3])}, opset=22)


def modes_in_network(model: bytes) -> list[str]:
    """How TensorRT-RTX understood each grid sample of a model."""
    rt = find_tensorrt("tensorrt_rtx")
    network = make_network(rt, rt.api.Builder(rt.logger))
    assert rt.api.OnnxParser(network, rt.logger).parse(model)
    layers: list[Any] = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        layer.__class__ = rt.api.IGridSampleLayer  # the bindings give every layer as an ILayer
    return [layer.interpolation_mode.name for layer in layers]


@pytest.mark.parametrize(("mode", "spelling"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_new_name_becomes_the_one_that_every_importer_reads(mode: str, spelling: str, tmp_path: Path) -> None:
    """The file keeps its own; the parser understands both alike."""
    path = sampler(tmp_path, mode)
    before = path.read_bytes()
    respelled = changed_by(importer_form, path)
    assert respelled is not None
    assert [helper.get_node_attr_value(node, "mode").decode() for node in graph_of(respelled).node] == [spelling]
    assert path.read_bytes() == before
    assert modes_in_network(respelled) == modes_in_network(before) == [mode.upper()]


@pytest.mark.parametrize("mode", ["nearest", None])
def test_file_that_every_importer_reads_is_left_alone(mode: str | None, tmp_path: Path) -> None:
    """Nothing to respell, and no grid sample at all."""
    assert changed_by(importer_form, sampler(tmp_path, mode)) is None
    assert changed_by(importer_form, onnx_models.relu(tmp_path)) is None


def test_node_in_a_branch_is_respelled_too(tmp_path: Path) -> None:
    """Branches are no hiding places."""
    inner = helper.make_node("GridSample", ["x", "grid"], ["z"], mode="linear")
    value = helper.make_tensor_value_info("z", FLOAT, [1, 2, 3, 3])
    branch = helper.make_graph([inner], "branch", [], [value])
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    inputs = {"x": (FLOAT, [1, 2, 4, 4]), "grid": (FLOAT, [1, 3, 3, 2]), "condition": (onnx.TensorProto.BOOL, [])}
    path = onnx_models.save(tmp_path / "if.onnx", [node], inputs, {"y": (FLOAT, [1, 2, 3, 3])}, opset=22)
    respelled = changed_by(importer_form, path)
    assert respelled is not None
    branches = [attribute.g for attribute in graph_of(respelled).node[0].attribute]
    assert [helper.get_node_attr_value(part.node[0], "mode") for part in branches] == [b"bilinear", b"bilinear"]


def test_builder_parses_the_respelled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What parser_input gives is what TensorRT gets."""
    rt = find_tensorrt("tensorrt_rtx")
    builder = rt.api.Builder(rt.logger)
    request = SimpleNamespace(
        onnx_path=str(sampler(tmp_path, "linear")), refittable=False, precision="tf32", attention="node"
    )
    build = plan._PlanBuild(rt, cast("Any", request), rt.log.mark())
    assert plan._parse(build, builder).num_layers == 1
    unknown = onnx_models.save(
        tmp_path / "unknown.onnx", [helper.make_node("Unknown", ["x"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}
    )
    monkeypatch.setattr(plan, "parser_input", lambda path, **options: unknown.read_bytes())
    with pytest.raises(BuildError, match="Op type Unknown is not supported"):
        plan._parse(build, builder)


def test_each_fault_says_where_it_was_seen() -> None:
    """A row without a version could never be removed again."""
    assert [fault.operator for fault in IMPORTER_FAULTS if not any(sign.isdigit() for sign in fault.seen)] == []


def graph_of(model: bytes) -> Any:
    """The graph of a serialised model."""
    return onnx.load_model_from_string(model).graph
