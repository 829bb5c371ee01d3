"""onnxscript's rewrite rules as an export applies them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support import onnx_models
from torch2engine.exporter.optimize import exact_rewrites, optimize

MATCHER: Any = importlib.import_module("onnxscript.rewriter._matcher").SimplePatternMatcher
ENDS = {"zero": 0, "half": 3, "whole": 6, "last": -1}


def two_halves(folder: Path) -> Any:
    """A model that takes both halves of its input's rows, among nodes of other operators."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "half", "last"], ["left"]),
        helper.make_node("Slice", ["x", "half", "whole", "last"], ["right"]),
        helper.make_node("Relu", ["left"], ["kept"]),
        helper.make_node("Add", ["kept", "right"], ["y"]),
    ]
    inputs, outputs = {"x": (TensorProto.FLOAT, [4, 6])}, {"y": (TensorProto.FLOAT, [4, 3])}
    constants = {name: np.array([number]) for name, number in ENDS.items()}
    ir: Any = importlib.import_module("onnx_ir")
    return ir.load(onnx_models.save(folder / "halves.onnx", nodes, inputs, outputs, constants))


def test_rule_looks_at_nodes_of_its_operator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends in several nodes does not list the whole graph for every other node either."""
    match = MATCHER.match
    looked_at: set[tuple[str, str]] = set()

    def noted(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        identifier = self.pattern.output_nodes[0].op_identifier()
        if identifier is not None:  # a rule for any of several operators has none
            looked_at.add((identifier[1], node.op_type))
        return match(self, model, graph, node, **options)

    monkeypatch.setattr(MATCHER, "match", noted)
    model = two_halves(tmp_path)
    with exact_rewrites() as rules_are_exact:
        assert rules_are_exact
        optimize(model, rewrite=True)
    assert {own for own, _ in looked_at} == {"Slice", "Relu"}
    assert all(own == met for own, met in looked_at)
    assert [node.op_type for node in model.graph] == ["Slice", "Slice", "Relu", "Add"]
    looked_at.clear()
    optimize(model, rewrite=True)
    assert {met for own, met in looked_at if own == "Slice"} == {"Slice", "Relu", "Add"}  # onnxscript's own are back
