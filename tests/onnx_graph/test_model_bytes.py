"""`torch2engine.onnx_graph.model_bytes`: the pieces of a model are the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from torch2engine.onnx_graph.model_bytes import take_pieces


def model(*sizes: int) -> onnx.ModelProto:
    """A model that adds weights of these sizes, with everything that a model has beside its graph."""
    weights = [numpy_helper.from_array(np.arange(size, dtype=np.float32), f"w{size}") for size in sizes]
    nodes = [helper.make_node("Add", ["x", weight.name], [f"y_{weight.name}"]) for weight in weights]
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])]
    results = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [None, None]) for node in nodes]
    graph = helper.make_graph(nodes, "graph", values, results, initializer=weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], producer_name="test")
    helper.set_model_props(made, {"key": "value"})
    return made


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (31, 32, 33), (5000, 1, 70_000)])
def test_pieces_make_the_same_model(sizes: tuple[int, ...]) -> None:
    """Sizes below and above one, two and three groups of seven bits."""
    written = b"".join(take_pieces(model(*sizes)))
    read = onnx.load_from_string(written)
    assert read == model(*sizes)
    assert len(written) == len(model(*sizes).SerializeToString())
    onnx.checker.check_model(written, full_check=True)


def test_each_weight_is_a_piece_and_the_model_is_left_without() -> None:
    """Joined to nothing else, it is the weight."""
    taken = model(3, 4)
    pieces = take_pieces(taken)
    assert [TensorProto.FromString(piece).name for piece in pieces[4::2]] == ["w3", "w4"]
    assert not taken.HasField("graph")
