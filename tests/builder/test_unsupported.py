"""`torch2engine.builder.unsupported`: the parser stops at the first refusal, the error must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from tests.support import onnx_models
from torch2engine.builder.build import build
from torch2engine.core.errors import BuildError, UnsupportedOperatorError

FLOAT, INT64 = onnx_models.FLOAT, onnx_models.INT64
NODE = helper.make_node


def refused(path: Path) -> UnsupportedOperatorError:
    """The error of a build that the parser refuses."""
    with pytest.raises(UnsupportedOperatorError) as caught:
        build(path, {"batch": (1, 2, 4)})
    return caught.value


def names(error: UnsupportedOperatorError) -> list[tuple[str, str]]:
    """Operator and node of every entry."""
    return [(node.op, node.name) for node in error.nodes]


def test_refusals_one_behind_the_other_are_all_found(tmp_path: Path) -> None:
    """Nodes that the parser meets one at a time, each as its first refusal, are all in the list, in graph order."""
    nodes = [
        NODE("ReduceSum", ["x", "axes"], ["sum"], name="sum"),
        NODE("Resize", ["image", "", "scales"], ["small"], name="resize", antialias=1, mode="linear"),
        NODE("NonZero", ["x"], ["where"], name="where"),
        NODE("ReduceMax", ["x", "axes"], ["max"], name="max"),
        NODE("Det", ["square"], ["det"], name="det"),
    ]
    path = onnx_models.save(
        tmp_path / "many.onnx",
        nodes,
        {
            "x": (FLOAT, ["batch", 4]),
            "axes": (INT64, [1]),
            "image": (FLOAT, [1, 1, 4, 4]),
            "square": (FLOAT, ["batch", 4, 4]),
        },
        {
            "sum": (FLOAT, ["batch", 1]),
            "small": (FLOAT, [1, 1, 2, 2]),
            "where": (INT64, [2, "found"]),
            "max": (FLOAT, ["batch", 1]),
            "det": (FLOAT, ["batch"]),
        },
        {"scales": onnx_models.np.array([1, 1, 0.5, 0.5], onnx_models.np.float32)},
    )
    error = refused(path)
    assert names(error) == [
        ("ReduceSum", "sum"),
        ("Resize", "resize"),
        ("NonZero", "where"),
        ("ReduceMax", "max"),
        ("Det", "det"),
    ]
    assert all(node.reason for node in error.nodes)
    assert "Antialiasing" in error.nodes[1].reason


def test_a_node_behind_a_refused_one_is_not_blamed(tmp_path: Path) -> None:
    """What only fails because its input was cut away is no finding; what fails by itself is."""
    nodes = [
        NODE("NonZero", ["x"], ["where"], name="where"),
        NODE("Cast", ["where"], ["positions"], name="cast", to=FLOAT),
        NODE("ReduceSum", ["x", "where"], ["dependent"], name="dependent"),
        NODE("Det", ["square"], ["det"], name="det"),
    ]
    path = onnx_models.save(
        tmp_path / "behind.onnx",
        nodes,
        {"x": (FLOAT, ["batch", 4]), "square": (FLOAT, ["batch", 4, 4])},
        {"positions": (FLOAT, [2, "found"]), "dependent": (FLOAT, ["batch"]), "det": (FLOAT, ["batch"])},
    )
    assert names(refused(path)) == [("NonZero", "where"), ("Det", "det")]


def test_a_value_without_a_type_does_not_end_the_search(tmp_path: Path) -> None:
    """Behind an operator that nobody knows, types are unknown; the rest of the graph is still looked at."""
    nodes = [
        NODE("Mystery", ["x"], ["m"], name="mystery", domain="my.domain"),
        NODE("Relu", ["m"], ["r"], name="relu"),
        NODE("NonZero", ["x"], ["where"], name="where"),
        NODE("ReduceSum", ["x", "axes"], ["sum"], name="sum"),
    ]
    path = onnx_models.save(
        tmp_path / "untyped.onnx",
        nodes,
        {"x": (FLOAT, ["batch", 4]), "axes": (INT64, [1])},
        {"r": (FLOAT, ["batch", 4]), "where": (INT64, [2, "found"]), "sum": (FLOAT, ["batch", 1])},
    )
    assert names(refused(path)) == [("Mystery", "mystery"), ("NonZero", "where"), ("ReduceSum", "sum")]


def branch(op: str, result: str) -> Any:
    """A subgraph of one node over the outer value `square`."""
    node = NODE(op, ["square"], [result], name=f"inner_{result}")
    node.metadata_props.add(key="torch2engine.module", value=f"gate.{result}")
    return helper.make_graph([node], result, [], [helper.make_tensor_value_info(result, FLOAT, [4, 4])])


def test_a_node_inside_a_branch_is_named_itself(tmp_path: Path) -> None:
    """The node in the If's branch is the finding, with its own module, and the search goes on behind the If."""
    nodes = [
        NODE("If", ["flag"], ["y"], name="if", then_branch=branch("Relu", "then"), else_branch=branch("Det", "other")),
        NODE("NonZero", ["square"], ["where"], name="where"),
    ]
    path = onnx_models.save(
        tmp_path / "branch.onnx",
        nodes,
        {"flag": (TensorProto.BOOL, []), "square": (FLOAT, [4, 4])},
        {"y": (FLOAT, [4, 4]), "where": (INT64, [2, "found"])},
    )
    with pytest.raises(UnsupportedOperatorError) as caught:
        build(path)
    assert names(caught.value) == [("Det", "inner_other"), ("NonZero", "where")]
    assert caught.value.nodes[0].module == "gate.other"


def test_nodes_without_names_are_told_apart_by_their_outputs(tmp_path: Path) -> None:
    """Names are optional in ONNX; the output's name stands in."""
    nodes = [NODE("Det", ["x"], ["first"]), NODE("Det", ["x"], ["second"])]
    path = onnx_models.save(
        tmp_path / "nameless.onnx",
        nodes,
        {"x": (FLOAT, ["batch", 4, 4])},
        {"first": (FLOAT, ["batch"]), "second": (FLOAT, ["batch"])},
    )
    assert [node.name for node in refused(path).nodes] == ["first", "second"]


LSTM = NODE("LSTM", ["steps", "w", "r"], ["h"], name="lstm", hidden_size=4, activations=["Foo", "Tanh", "Tanh"])
LSTM_WEIGHTS = {"w": onnx_models.np.zeros((1, 16, 2), "float32"), "r": onnx_models.np.zeros((1, 16, 4), "float32")}


def test_a_node_that_the_parser_does_not_name_is_found(tmp_path: Path) -> None:
    """Where the parser gives a reason without a node, the node is searched for, and the others still found."""
    inputs = {"steps": (FLOAT, [3, 1, 2]), "x": (FLOAT, ["batch", 4, 4])}
    outputs = {"y": (FLOAT, ["batch", 4, 4]), "h": (FLOAT, [3, 1, 1, 4]), "det": (FLOAT, ["batch"])}
    nodes = [NODE("Relu", ["x"], ["y"], name="relu"), LSTM, NODE("Det", ["x"], ["det"], name="det")]
    for order in (nodes, [LSTM, nodes[0], nodes[2]], nodes[::-1]):
        error = refused(onnx_models.save(tmp_path / "lstm.onnx", order, inputs, outputs, LSTM_WEIGHTS))
        assert sorted(names(error)) == [("Det", "det"), ("LSTM", "lstm")]
        assert {node.reason for node in error.nodes if node.op == "LSTM"} == {"Unknown activation type: Foo"}


def test_a_refusal_of_the_whole_file_blames_no_node(tmp_path: Path) -> None:
    """A weight of a dtype that TensorRT lacks is a reason, not an operator."""
    weights = {"w": onnx_models.np.zeros(4, "complex64")}
    nodes = [NODE("Relu", ["x"], ["y"], name="relu"), NODE("Sigmoid", ["y"], ["z"], name="sigmoid")]
    path = onnx_models.save(
        tmp_path / "weight.onnx", nodes, {"x": (FLOAT, ["batch"])}, {"z": (FLOAT, ["batch"])}, weights
    )
    with pytest.raises(BuildError) as caught:
        build(path, {"batch": (1, 2, 4)})
    assert (
        "got a refusal of the ONNX file by its parser; expected a file that it reads; see its lines "
        "below, and export the model otherwise"
    ) in str(caught.value)
