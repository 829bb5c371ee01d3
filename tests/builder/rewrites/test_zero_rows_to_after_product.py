"""Rows become zero behind the product that joins the heads, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.builder.rewrites.attention_models import HEADS, QUERIES, answers, attention, read
from tests.builder.rewrites.builder_input import changed_by
from torch2engine.builder.rewrites.zero_rows_to_after_product import zero_rows_later


@pytest.mark.parametrize(
    "rows", [["batch", 1, QUERIES, 1], ["batch", 1, 1, 1], [1, 1, QUERIES, 1], [1, 1, 1, 1]], ids=str
)
def test_rows_become_zero_behind_the_product(tmp_path: Path, rows: list[Any]) -> None:
    """To the bit; what reads the product reads the choice instead."""
    path = attention(tmp_path, zeroes=rows)
    model = read(changed_by(zero_rows_later, path))
    nodes = {node.name: node for node in model.graph.node}
    (late,) = [node for node in model.graph.node if node.op_type == "Where"]
    assert nodes["out"].output[0] in late.input
    assert late.name.startswith("zeroes/")
    assert set(nodes["last"].input) == {late.output[0]}
    expected = answers(onnx.load(path))
    assert np.array_equal(answers(model), expected)
    assert len(rows) == 4 and (not expected.any(-1).all() or rows[0] == 1)


def test_reshape_that_changes_nothing_is_looked_through(tmp_path: Path) -> None:
    """Export leaves one behind the attention."""
    path = attention(tmp_path, zeroes=["batch", 1, QUERIES, 1])
    model = onnx.load(path)
    (swap,) = [node for node in model.graph.node if node.input[0] == "chosen"]
    swap.input[0] = "same"
    sizes = onnx.numpy_helper.from_array(np.array([0, 0, 0, 0]), "same.sizes")
    model.graph.initializer.append(sizes)
    place = list(model.graph.node).index(swap)
    model.graph.node.insert(place, helper.make_node("Reshape", ["chosen", "same.sizes"], ["same"]))
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    found = read(changed_by(zero_rows_later, path))
    assert np.array_equal(answers(found), answers(onnx.load(path)))


@pytest.mark.parametrize(
    "options",
    [
        {"zeroes": ["batch", HEADS, QUERIES, 1]},
        {"zeroes": ["batch", 1, QUERIES, 16]},
        {"zeroes": ["other", 1, QUERIES, 1]},
        {"zeroes": ["batch", 1, QUERIES, 1], "dtype": TensorProto.FLOAT},
        {},
    ],
    ids=str,
)
def test_other_choices_stay(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of single heads or entries, of an unknown batch, and in float32, where no kernel is saved."""
    assert changed_by(zero_rows_later, attention(tmp_path, **options)) is None


def test_other_values_than_zero_stay(tmp_path: Path) -> None:
    """A product makes something else of them."""
    path = attention(tmp_path, zeroes=["batch", 1, QUERIES, 1])
    model = onnx.load(path)
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "zero"]
    zero.CopyFrom(onnx.numpy_helper.from_array(np.asarray(1, np.float16), "zero"))
    onnx.save(model, path)
    assert changed_by(zero_rows_later, path) is None


@pytest.mark.parametrize("value", ["chosen", "swapped", "rows", "product"])
def test_result_that_a_caller_gets_stays(tmp_path: Path, value: str) -> None:
    """Every value on the way keeps its meaning."""
    path = attention(tmp_path, zeroes=["batch", 1, QUERIES, 1])
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT16, None))
    onnx.save(model, path)
    assert changed_by(zero_rows_later, path) is None
