"""`torch2engine.diagnose`: the first torch module that is answered wrongly, for ten planted faults."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import torch2engine as t2e
from tests.support.sample_artifacts import fresh_engine
from torch2engine.capture.module_calls import record_module_calls
from torch2engine.core.errors import ArtifactError
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.module_outputs import find_module_outputs, following
from torch2engine.onnx_graph.node_origins import origin_of


class Block(nn.Module):
    """A transformer's block, with arithmetic of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.drop(self.mlp(x))


class Net(nn.Module):
    """A convolution with its BatchNorm, two blocks and a head; the mean is the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported() -> t2e.OnnxArtifact:
    """The model with a dynamic batch, exported once."""
    return t2e.export(net(), X, {"x": {0: t2e.Axis("batch", 1, 2, 4)}})


@pytest.fixture
def model() -> Net:
    """The model that was exported; a test may spoil it."""
    return net()


def node_of(graph: Any, module: str, operator: str) -> Any:
    return next(node for node in graph.node if origin_of(node).module == module and node.op_type == operator)


def moved_weight(path: str) -> Callable[[Any, Net], None]:
    """The model was trained on: one of its parameters is another one than at the export."""

    def plant(graph: Any, model: Net) -> None:
        with torch.no_grad():
            model.get_parameter(path).add_(0.5)

    return plant


def other_buffer(graph: Any, model: Net) -> None:
    model.stem[1].running_mean.add_(0.5)  # type: ignore[operator, union-attr]  # it is a BatchNorm


def changed_eps(graph: Any, model: Net) -> None:
    for attribute in node_of(graph, "blocks.1.norm", "LayerNormalization").attribute:
        if attribute.name == "epsilon":
            attribute.f = 1.0


def other_operator(graph: Any, model: Net) -> None:
    node = node_of(graph, "blocks.1.mlp.1", "Gelu")
    node.op_type = "Relu"
    del node.attribute[:]


def subtracted_residual(graph: Any, model: Net) -> None:
    [node for node in graph.node if origin_of(node).module == "blocks.1" and node.op_type == "Add"][-1].op_type = "Sub"


def summed_mean(graph: Any, model: Net) -> None:
    node_of(graph, "", "ReduceMean").op_type = "ReduceSum"


def lost_head_bias(graph: Any, model: Net) -> None:
    del node_of(graph, "head", "Gemm").input[2:]


def not_a_number(graph: Any, model: Net) -> None:
    for tensor in graph.initializer:
        if tensor.name == "stem.0.bias":
            values = numpy_helper.to_array(tensor).copy()
            values[3] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


FAULTS: list[tuple[str, Callable[[Any, Net], None]]] = [
    ("stem.1", moved_weight("stem.0.weight")),  # a folded convolution is seen in what its BatchNorm returns
    ("stem.1", other_buffer),
    ("stem.1", not_a_number),
    ("blocks.0.attn", moved_weight("blocks.0.attn.out_proj.weight")),
    ("blocks.0.mlp.0", moved_weight("blocks.0.mlp.0.bias")),
    ("blocks.1.norm", changed_eps),
    ("blocks.1.mlp.1", other_operator),
    ("blocks.1", subtracted_residual),
    ("", summed_mean),
    ("head", lost_head_bias),
]


@pytest.mark.parametrize(
    ("module", "plant"), FAULTS, ids=[f"{number}-{path}" for number, (path, _) in enumerate(FAULTS)]
)
def test_first_wrong_module_is_found(
    module: str, plant: Callable[[Any, Net], None], exported: t2e.OnnxArtifact, model: Net, tmp_path: Path
) -> None:
    """A fault in the graph or in the weights is located at the module that it is in."""
    onnx_model = load_model(exported.onnx_path)
    plant(onnx_model.graph, model)
    save_model(onnx_model, tmp_path / "model.onnx")
    found = t2e.diagnose(model, t2e.ORTModule(exported.replace(folder=tmp_path)), X)
    assert (found.stage, found.passed) == ("graph", False)
    assert found.first is not None
    assert (found.first.module if module else found.first.tensor) == (module or "output")
    assert found.worst[0].parity.rel_l2 >= found.first.parity.rel_l2 or np.isnan(found.worst[0].parity.rel_l2)


def test_right_module_has_nothing_to_find(exported: t2e.OnnxArtifact, model: Net) -> None:
    """Where the outputs agree, no module is blamed, and the model has no hooks left."""
    found = t2e.diagnose(model, t2e.ORTModule(exported), X)
    assert (found.stage, found.first, found.differences, found.command) == ("none", None, (), "")
    assert str(found) == "every output agrees with the model"
    assert not any(module._forward_hooks for module in model.modules())


def test_diagnosis_is_printed_with_the_line_and_the_command(exported: t2e.OnnxArtifact, model: Net) -> None:
    """The text names the module, the user's line, the worst tensors and a command that runs the same graph."""
    moved_weight("blocks.1.mlp.2.weight")(None, model)
    found = t2e.diagnose(model, t2e.ORTModule(exported), X)
    head, first, *table, command = str(found).splitlines()
    assert head == "the ONNX graph's answers differ from the model's, in ONNX Runtime too"
    assert first.startswith("first difference: module 'blocks.1.mlp.2' (")
    assert "test_diagnose.py:" in first
    assert table[0].split() == ["module", "tensor", "rel-l2", "max-abs", "verdict"]
    words = shlex.split(command.removeprefix("to reproduce: "))
    assert words[:3] == ["polygraphy", "run", str(exported.onnx_path)]
    assert words[-2:] == ["--input-shapes", "x:[3,3,12,12]"]
    data = found.to_json()
    assert (data["stage"], data["first"]["module"]) == ("graph", "blocks.1.mlp.2")


def test_modules_that_agree_again_are_not_blamed(exported: t2e.OnnxArtifact) -> None:
    """A BatchNorm without nodes stands for its convolution, so a right graph has no difference anywhere."""
    model = net()
    with torch.no_grad():
        model.head.bias.add_(1)
    found = t2e.diagnose(model, t2e.ORTModule(exported), X)
    wrong = [difference.module for difference in found.differences if not difference.parity.passed]
    assert wrong == ["head"]
    assert {"stem.1", "stem.2", "blocks.0.attn", "blocks.1"} <= {each.module for each in found.differences}
    merged = next(each for each in found.differences if each.module == "stem.1")
    assert merged.computed_with == ("stem.0",)


def test_engine_without_its_graph_is_refused(tmp_path: Path) -> None:
    """Nothing can be looked into without the ONNX graph."""
    module = t2e.TRTModule(fresh_engine(tmp_path).without_onnx())
    with pytest.raises(ArtifactError, match=r"got no model\.onnx; expected a module with it; deploy the model again"):
        t2e.diagnose(net(), module, X)


def test_module_that_is_called_twice_has_two_calls() -> None:
    """What a module returned is copied before a later one writes into it."""
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Identity(), relu, relu)
    calls = record_module_calls(model, lambda: model(torch.tensor([-1.0, 2.0])))
    assert [call.path for call in calls] == ["0", "1", "1", ""]
    assert calls[0].outputs[0].tolist() == [-1.0, 2.0]
    assert calls[1].outputs[0].tolist() == [0.0, 2.0]


def test_tensors_of_a_module_are_those_that_leave_it() -> None:
    """What stays inside a module is not its output, and what follows from a tensor is found through others."""
    nodes = [helper.make_node("Relu", [before], [after], name=after) for before, after in ("xa", "ab", "bc", "cd")]
    for node, path in zip(nodes, ("m.0", "m.1", "", "n"), strict=True):
        node.metadata_props.add(key="torch2engine.module", value=path)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, [1])], [value("d", 1, [1])])
    onnx_model = helper.make_model(graph)
    assert find_module_outputs(onnx_model) == {"m": ("b",), "m.0": ("a",), "m.1": ("b",), "n": ("d",), "": ("d",)}
    assert following(onnx_model, {"a", "b", "d"}) == {"a": {"b"}, "b": {"d"}, "d": set()}
