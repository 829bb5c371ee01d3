"""Walking ONNX graphs, with graphs inside their nodes.

Enters: a graph with a branch in a loop. Leaves: proof that nothing inside is passed over.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper

from torch2engine.onnx_graph.walk import subgraphs, walk_graphs, walk_nodes, walk_tensors


def graph(name: str, *nodes: Any) -> Any:
    """A graph with a weight of its own."""
    weight = helper.make_tensor(f"{name}.weight", TensorProto.FLOAT, [1], [1.0])
    return helper.make_graph(list(nodes), name, [], [], [weight])


def nested() -> Any:
    """A Loop whose body has an If with two branches, one of them with a Constant."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [2.0])
    constant = helper.make_node("Constant", [], ["c"], "constant", value=value)
    branches = {"then_branch": graph("then", constant), "else_branch": graph("else")}
    choice = helper.make_node("If", ["condition"], ["y"], "if", **branches)
    loop = helper.make_node("Loop", ["", ""], ["y"], "loop", body=graph("body", choice))
    return graph("main", helper.make_node("Relu", ["x"], ["z"], "relu"), loop)


def test_all_graphs_are_visited() -> None:
    """The outermost first."""
    names = [part.name for part in walk_graphs(nested())]
    assert names[:2] == ["main", "body"]
    assert sorted(names[2:]) == ["else", "then"]  # the order of two branches is that of their attributes


def test_all_nodes_are_visited() -> None:
    """Each node comes before those inside it."""
    assert [node.name for node in walk_nodes(nested().node)] == ["relu", "loop", "if", "constant"]


def test_all_tensors_are_visited() -> None:
    """Weights of every graph, and values of constants."""
    assert {tensor.name for tensor in walk_tensors(nested())} == {
        "main.weight",
        "body.weight",
        "then.weight",
        "else.weight",
        "value",
    }


def test_node_without_graphs_has_none() -> None:
    """And looking for them leaves the node as it was."""
    node = helper.make_node("Relu", ["x"], ["y"], alpha=1.0)
    before = node.SerializeToString()
    assert list(subgraphs(node)) == []
    assert node.SerializeToString() == before
