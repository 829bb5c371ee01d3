"""What no input decides is computed once, when a model is exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from tests.support.models import error_of, exported, graph_of
from torch2engine.core.spec import Axis
from torch2engine.exporter.computed_constants import compute_constants

BATCH = Axis("batch", 1, 2, 4)


def computed(text: str) -> Any:
    """A graph in ONNX's text form, after its constants have been computed."""
    proto: Any = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]> graph {text}')
    ir: Any = onnx_ir
    model = ir.from_proto(proto)
    compute_constants(model)
    found = ir.to_proto(model)
    onnx.checker.check_model(found, full_check=True)
    return found


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def answer(model: Any, x: Any) -> Any:
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_nodes_that_no_input_decides_become_one_tensor() -> None:
    """Under the name of the last result; the tensors that only they have read are gone."""
    model = computed(
        "(float[2,2] x) => (float[2,2] y) <int64[2] size = {2,2}, int64[1,1] row = {1}, float[1,2] new = {1,2}, "
        "float zero = {0}, float low = {-100}> { a = ConstantOfShape(size) b = ScatterND(a, row, new) "
        "c = Equal(b, zero) d = Not(c) mask = Where(d, low, b) y = Add(x, mask) }"
    )
    assert operators(model) == ["Add"]
    assert [weight.name for weight in model.graph.initializer] == ["mask"]
    np.testing.assert_array_equal(answer(model, np.zeros((2, 2), np.float32)), [[0, 0], [-100, -100]])


def test_what_only_expands_stays() -> None:
    """The smaller tensor is read instead, also behind computed nodes."""
    model = computed(
        "(float[64,2] x) => (float[64,2] y) <int64[2] size = {64,2}, float[2] a = {1,2}, float[2] b = {3,4}> "
        "{ c = Add(a, b) d = Expand(c, size) y = Add(x, d) }"
    )
    assert operators(model) == ["Expand", "Add"]
    np.testing.assert_array_equal(answer(model, np.zeros((64, 2), np.float32)), [[4, 6]] * 64)


@pytest.mark.parametrize(
    "text",
    [
        "(float[2] x) => (float[2] y) <float[2] w = {1,2}> { a = Add(x, w) y = Neg(a) }",
        "(float[2] x) => (float[2] y, float[2] z) <float[2] w = {1,2}> { z = Neg(w) y = Relu(x) }",
        "(float[2] x) => (float[2] y) <int64[1] a = {7}, int64[1] b = {2}> "
        "{ c = Div(a, b) d = Cast<to = 1>(c) y = Add(x, d) }",
        "(float[2] x) => (float[2] y) <int64[1] size = {2}> { r = RandomNormal<shape = [2]>() y = Add(x, r) }",
        "(float[2] x) => (float[9999999,2] y) <int64[2] size = {9999999,2}> "
        "{ r = ConstantOfShape(size) s = Neg(r) y = Add(x, s) }",
    ],
    ids=["inputs decide it", "an output", "integers are divided in another way", "random numbers", "large"],
)
def test_everything_else_stays(text: str) -> None:
    """No node goes that has to run."""
    before = [word for word in ("Add", "Neg", "Div", "RandomNormal", "ConstantOfShape", "Relu") if f" {word}" in text]
    assert set(before) <= set(operators(computed(text)))


@pytest.mark.parametrize("dtype", [onnx.TensorProto.INT4, onnx.TensorProto.STRING], ids=["four bits", "text"])
def test_constant_of_a_type_that_pytorch_lacks_stays(dtype: int) -> None:
    """The node that reads it runs, and the export goes on."""
    text = "(float[2] x) => (float[2] y) { a = Cast<to = 1>(w) y = Add(x, a) }"
    proto: Any = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]> graph {text}')
    values: Any = ["1", "2"] if dtype == onnx.TensorProto.STRING else [1, 2]
    proto.graph.initializer.append(onnx.helper.make_tensor("w", dtype, [2], values))
    ir: Any = onnx_ir
    model = ir.from_proto(proto)
    compute_constants(model)
    found = ir.to_proto(model)
    assert operators(found) == ["Cast", "Add"]
    np.testing.assert_array_equal(answer(found, np.zeros(2, np.float32)), [1, 2])


class ShiftedWindows(nn.Module):
    """Attention in windows that a mask made by writes cuts, with a bias from a table: as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(961, 2))
        self.project = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.zeros(16, 16)
        for number, rows in enumerate((slice(0, -8), slice(-8, -3), slice(-3, None))):
            places[rows, :] = number
        windows = places.view(2, 8, 2, 8).permute(0, 2, 1, 3).reshape(4, 64)
        mask = windows.unsqueeze(1) - windows.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        index = torch.arange(64)[:, None] + torch.arange(64)[None]
        bias = self.table[index.view(-1)].view(64, 64, 2).permute(2, 0, 1).unsqueeze(0)
        query, key, value = self.project(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / 4 + bias
        scores = scores.view(-1, 4, 2, 64, 64) + mask.unsqueeze(1).unsqueeze(0)
        return (scores.view(-1, 2, 64, 64).softmax(-1) @ value).transpose(1, 2).flatten(2)


def test_mask_and_bias_of_shifted_windows_are_constants() -> None:
    """TensorRT-RTX fuses no other attention in windows."""
    torch.manual_seed(0)
    windows = Axis("windows", 4, 8, 16, multiple_of=4)
    artifact, examples = exported(ShiftedWindows(), torch.randn(8, 64, 32), {"x": {0: windows}})
    nodes = list(graph_of(artifact).node)
    assert {"ScatterND", "Where", "Equal", "ConstantOfShape"}.isdisjoint(node.op_type for node in nodes)
    constants = {weight.name for weight in graph_of(artifact).initializer}
    added = [node for node in nodes if node.op_type == "Add" and constants.intersection(node.input)]
    assert len(added) == 3  # the linear layer's bias, the table's, and the mask
    assert error_of(artifact, examples) < 1e-5
