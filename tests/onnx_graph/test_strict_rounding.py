"""Rounding after every operator: what a GPU would answer, on the CPU.

Enters: small typed graphs. Leaves: proof that overflow and rounding are seen, which ONNX Runtime's own answers hide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.support.onnx_models import FLOAT
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.onnx_graph.strict_rounding import round_strictly

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
X = np.array([[1.2345678, 0.9, 0.1, -3.0]], dtype=np.float32)


def typed(folder: Path, low: int, untyped: bool = False) -> Path:
    """y = sqrt((300 x)²), computed in a low type; without types on record if asked."""
    weight = helper.make_tensor("w", low, [4, 4], (np.eye(4) * 300).ravel())
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=low),
        helper.make_node("MatMul", ["narrow", "w"], ["product"], name="product"),
        helper.make_node("Mul", ["product", "product"], ["square"], name="square"),
        helper.make_node("Sqrt", ["square"], ["root"], name="root"),
        helper.make_node("Cast", ["root"], ["y"], to=FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "xy"]
    inside = [helper.make_tensor_value_info(n, low, ["n", 4]) for n in ("narrow", "product", "square", "root")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight], value_info=[] if untyped else inside)
    path = folder / "typed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path


def answer(path: Path, **inputs: NDArray[Any]) -> NDArray[Any]:
    """The session's, which runs the strict twin; the twin is a valid model."""
    onnx.checker.check_model(round_strictly(onnx.load(path)), full_check=True)
    return next(iter(OrtSession(path)(inputs).values()))


@pytest.mark.parametrize("untyped", [False, True])
def test_overflow_inside_is_seen(tmp_path: Path, untyped: bool) -> None:
    """A square beyond 65504 is infinite in float16, though ONNX Runtime's own answer is a fine number."""
    path = typed(tmp_path, HALF, untyped)
    assert np.isfinite(OrtSession(path, as_it_is=True)({"x": X})["y"]).all()
    found = answer(path, x=X)
    assert np.isinf(found[0, [0, 1, 3]]).all()
    assert found[0, 2] == pytest.approx(30, rel=1e-3)


def test_every_step_is_rounded(tmp_path: Path) -> None:
    """Each operator's result is what the type can hold: bit for bit numpy's own float16 steps."""
    x = X / 100
    half = x.astype(np.float16)
    product = (half.astype(np.float32) * 300).astype(np.float16)
    square = (product.astype(np.float32) ** 2).astype(np.float16)
    expected = np.sqrt(square.astype(np.float32)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(answer(typed(tmp_path, HALF), x=x), expected)


def test_bfloat16_is_rounded_and_does_not_overflow(tmp_path: Path) -> None:
    """bfloat16 has float32's range and eight digits: 370.37 becomes 370."""
    found = answer(typed(tmp_path, BRAIN), x=X)
    np.testing.assert_array_equal(found, np.array([[370, 270, 30, 900]], dtype=np.float32))


def test_float32_graph_is_its_own_twin(tmp_path: Path) -> None:
    """Without a low type nothing is rounded."""
    node = helper.make_node("Sqrt", ["x"], ["y"], name="root")
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "xy"]
    path = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=10), path)
    np.testing.assert_array_equal(answer(path, x=abs(X)), np.sqrt(abs(X)))


def test_low_inputs_outputs_and_subgraphs_are_rounded(tmp_path: Path) -> None:
    """Types count inside the branches of an If too, and at the model's own inputs and outputs."""
    branches = []
    for name, op in (("then", "Mul"), ("else", "Add")):
        node = helper.make_node(op, ["x", "x"], [f"{name}_y"], name=name)
        branches.append(helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", HALF, [4])]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", HALF, [4])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", HALF, [4])])
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    x = np.array([300, 1.5, 0, -7], dtype=np.float32)
    assert answer(path, c=np.array(True), x=x).tolist() == [np.inf, 2.25, 0, 49]
    assert answer(path, c=np.array(False), x=x).tolist() == [600, 3, 0, -14]


def test_branches_without_recorded_types_are_rounded(tmp_path: Path) -> None:
    """Types inside a branch are inferred: sqrt(1000²) overflows in float16."""
    inside = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Sqrt", ["square"], ["then_y"], name="root"),
    ]
    then = helper.make_graph(inside, "then", [], [helper.make_tensor_value_info("then_y", HALF, [1])])
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_y"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", HALF, [1])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", HALF, [1])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", HALF, [1])])
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    x = np.array([1000], dtype=np.float32)
    assert answer(path, c=np.array(True), x=x).tolist() == [np.inf]
    assert answer(path, c=np.array(False), x=x).tolist() == [1000]


def test_scattered_sums_are_rounded(tmp_path: Path) -> None:
    """ScatterND may add up, and then it computes."""
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], name="sum", reduction="add")
    values = {"x": (HALF, [2]), "i": (TensorProto.INT64, [4, 1]), "u": (HALF, [4])}
    inputs = [helper.make_tensor_value_info(name, *spec) for name, spec in values.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", HALF, [2])])
    path = tmp_path / "scatter.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    x, updates = np.zeros(2, np.float32), np.full(4, 60000, np.float32)
    assert answer(path, x=x, i=np.zeros((4, 1), np.int64), u=updates).tolist() == [np.inf, 0]


def test_functions_of_a_model_are_rounded(tmp_path: Path) -> None:
    """What a local function computes in float16 is rounded there too: 300² overflows before the root."""
    opset = [helper.make_opsetid("", 22)]
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Sqrt", ["b"], ["c"])]
    function = helper.make_function("my.domain", "Root", ["a"], ["c"], body, opset)
    ends = [helper.make_tensor_value_info(name, HALF, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Root", ["x"], ["y"], domain="my.domain")], "g", ends[:1], ends[1:])
    domains = [*opset, helper.make_opsetid("my.domain", 1)]
    path = tmp_path / "function.onnx"
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10, functions=[function]), path)
    assert answer(path, x=np.array([300, 3], np.float16)).tolist() == [np.inf, 3]
