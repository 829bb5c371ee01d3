"""Queries, keys and values of one tensor come from one product, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.builder.rewrites.attention_models import answers, attention, operators, read
from tests.builder.rewrites.builder_input import changed_by
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.attention_to_three_dimensions import fold_heads
from torch2engine.builder.rewrites.projections_to_one_product import merge_projections


def folded(path: Path) -> Path:
    """The file after the attention in it has been folded."""
    model = changed_by(fold_heads, path)
    assert model is not None
    path.write_bytes(model)
    return path


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("source", "products"), [("x", 4), ("z", 5)])
def test_projections_of_one_tensor_become_one(tmp_path: Path, source: str, products: int, has_bias: bool) -> None:
    """Of attention to the same tensor all three, else keys and values; new names begin with the first one's."""
    path = folded(attention(tmp_path, keys_of=source, has_bias=has_bias))
    model = read(changed_by(merge_projections, path))
    assert operators(model).count("MatMul") == products
    expected = answers(onnx.load(path))
    assert np.linalg.norm(answers(model) - expected) <= 1e-3 * np.linalg.norm(expected)
    first = "query" if source == "x" else "key"
    new = {node.name for node in model.graph.node} - {node.name for node in onnx.load(path).graph.node}
    assert {name.split("/")[0] for name in new} == {first}
    (product,) = [node for node in model.graph.node if node.name == first]
    assert product.op_type == "MatMul"
    weights = {tensor.name for tensor in model.graph.initializer}
    assert {f"{name}.weight" for name in ("query", "key", "value")} <= weights  # joined by the builder


def test_attention_that_is_not_folded_stays(tmp_path: Path) -> None:
    """The builder would cut the product apart again."""
    assert changed_by(merge_projections, attention(tmp_path, "bias", keys_of="x")) is None
    assert changed_by(merge_projections, attention(tmp_path, keys_of="x")) is None


@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_weights_that_a_caller_may_replace_stay(tmp_path: Path, tensor: str) -> None:
    """An input with a default value is no constant."""
    path = folded(attention(tmp_path))
    model = onnx.load(path)
    (weight,) = [one for one in model.graph.initializer if one.name == f"key.{tensor}"]
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, path)
    assert changed_by(merge_projections, path) is None


@pytest.mark.parametrize("read_value", ["key.product", "key.linear", "key.heads", "key"])
def test_result_that_somebody_else_reads_stays(tmp_path: Path, read_value: str) -> None:
    """It would have to be cut out of the merged one again."""
    path = folded(attention(tmp_path))
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Identity", [read_value], ["seen"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT16, None))
    onnx.save(model, path)
    assert changed_by(merge_projections, path) is None


def test_options_of_every_kind_keep_the_answers(tmp_path: Path) -> None:
    """All changes for TensorRT-RTX one after another, with rows that become zero."""
    options: list[dict[str, Any]] = [{}, {"mask": "key mask"}, {"form": "bias"}, {"form": "windows"}]
    for option in options:
        path = attention(tmp_path, zeroes=["batch", 1, 5, 1], **option)
        model = read(parser_input(path, is_rtx=True, cuts_sums=False))
        expected = answers(onnx.load(path))
        assert np.linalg.norm(answers(model) - expected) <= 2e-3 * np.linalg.norm(expected)
        assert not expected.any(-1).all()  # some rows are zero
