"""`torch2engine.exporter.type_promotion`: torch.onnx finds the same promotions, and computes nothing twice."""

from __future__ import annotations

import importlib
from typing import Any, cast

import pytest
import torch
from torch import fx, nn

from torch2engine.exporter.type_promotion import recorded_results_reused


class Mixed(nn.Module):
    """Integers meet floats, halves meet floats and Python numbers, and a comparison and a condition mix types."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, counts: torch.Tensor, halves: torch.Tensor) -> torch.Tensor:
        mean = counts / counts.shape[1]
        both = halves * 2.5 + mean * self.scale
        chosen = torch.where(counts > 0.5, both, counts)
        return chosen.sum(1) + (counts == 2).sum(1) + counts.shape[0]


def program() -> torch.export.ExportedProgram:
    """The mixed types at a dynamic batch."""
    batch = torch.export.Dim("batch", min=2, max=8)
    inputs = (torch.randint(0, 3, (4, 4)), torch.rand(4, 4, dtype=torch.half))
    return torch.export.export(Mixed(), inputs, dynamic_shapes=({0: batch}, {0: batch}))


def onnx_nodes(exported: torch.export.ExportedProgram) -> list[tuple[Any, ...]]:
    """What torch.onnx makes of it: operators with their attributes, inputs and outputs."""
    export = cast("Any", torch.onnx.export)
    graph = export(exported, (), None, dynamo=True, optimize=False, verbose=False).model_proto.graph
    return [(node.op_type, str(node.attribute), list(node.input), list(node.output)) for node in graph.node]


def test_promotions_are_those_of_a_whole_run() -> None:
    """Every cast stands where torch.onnx puts it by itself."""
    expected = onnx_nodes(program())
    with recorded_results_reused():
        found = onnx_nodes(program())
    assert sum(node[0] == "Cast" for node in expected) >= 4
    assert found == expected


def test_operators_are_computed_only_where_a_promotion_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have their results; afterwards torch.onnx runs them all again."""
    search: Any = importlib.import_module("torch.onnx._internal.fx.passes.type_promotion")
    run_node = fx.Interpreter.run_node
    computed: list[str] = []

    def noted(self: fx.Interpreter, node: fx.Node) -> Any:
        if isinstance(self, search._TypePromotionInterpreter) and node.op == "call_function":
            computed.append(node.name)
        return run_node(self, node)

    monkeypatch.setattr(fx.Interpreter, "run_node", noted)
    x = torch.rand(4, 4)
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Softmax(-1)), (x,))
    with recorded_results_reused():
        onnx_nodes(exported)
    assert computed == []
    onnx_nodes(exported)
    assert len(computed) >= 3
