"""Bytes are 32-bit integers inside the model that TensorRT parses, with the same answers; the rest is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builder.rewrites.builder_input import changed_by, layers_of
from tests.support import onnx_models
from torch2engine.builder.rewrites.bytes_to_int32 import widen_bytes

FLOAT, UINT8, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.BOOL
IMAGE = {"x": (UINT8, ["batch", 4, 6, 3])}
TABLE: Any = np.arange(255, -1, -1).astype(np.uint8)


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], name=f"make_{output}", **attributes)


def cast(source: str, to: int, output: str) -> Any:
    return node("Cast", [source], output, to=to)


def image_model(folder: Path) -> Path:
    """Everything that cameras' models do with bytes: channels first, a table, sums, a threshold, and bytes back."""
    nodes = [
        node("Transpose", ["x"], "planes", perm=[0, 3, 1, 2]),
        cast("planes", FLOAT, "real"),
        node("Add", ["planes", "planes"], "doubled"),
        node("Sub", ["step", "doubled"], "negative"),
        node("Greater", ["planes", "step"], "bright"),
        node("Where", ["bright", "doubled", "negative"], "chosen"),
        cast("chosen", TensorProto.INT32, "places"),
        node("Gather", ["table", "places"], "looked_up"),
        node("Mul", ["real", "half"], "dimmed"),
        cast("dimmed", UINT8, "rounded"),
        node("Concat", ["looked_up", "rounded", "x_planes"], "bytes", axis=1),
        node("Constant", [], "step", value=numpy_helper.from_array(np.array(100, np.uint8))),
        node("Identity", ["planes"], "x_planes"),
    ]
    nodes = [nodes[-2], nodes[0], nodes[-1], *nodes[1:-2]]
    outputs = {
        "bytes": (UINT8, ["batch", 9, 4, 6]),
        "bright": (BOOL, ["batch", 3, 4, 6]),
        "real": (FLOAT, ["batch", 3, 4, 6]),
    }
    weights = {"table": TABLE, "half": np.float32(0.5)}
    return onnx_models.save(folder / "image.onnx", nodes, IMAGE, outputs, weights)


def answers(model: bytes, x: np.ndarray) -> Any:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})


def test_model_of_bytes_answers_the_same_with_integers(tmp_path: Path) -> None:
    """Sums and differences wrap around as bytes do, and inputs and outputs stay bytes."""
    path = image_model(tmp_path)
    changed = changed_by(widen_bytes, path)
    assert changed is not None
    onnx.checker.check_model(changed, full_check=True)
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    for expected, found in zip(answers(path.read_bytes(), x), answers(changed, x), strict=True):
        assert expected.dtype == found.dtype
        np.testing.assert_array_equal(found, expected)


def test_model_of_bytes_is_parsed_by_tensorrt(tmp_path: Path) -> None:
    """TensorRT itself has no operator of bytes but a cast."""
    assert layers_of(image_model(tmp_path)).count("CAST") >= 3


def test_table_in_another_file_is_read_from_there(tmp_path: Path) -> None:
    """External data lie beside the model, wherever the process works."""
    path = image_model(tmp_path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    changed = changed_by(widen_bytes, path)
    assert changed is not None
    table = next(one for one in onnx.ModelProto.FromString(changed).graph.initializer if one.name.startswith("table"))
    np.testing.assert_array_equal(numpy_helper.to_array(table), TABLE)


def turn(name: str) -> Any:
    """A branch that gives the image with its axes the other way round."""
    result = helper.make_tensor_value_info(name, UINT8, None)
    return helper.make_graph([node("Transpose", ["x"], name)], name, [], [result])


@pytest.mark.parametrize(
    ("nodes", "output"),
    [
        ([cast("x", FLOAT, "y")], FLOAT),
        ([cast("x", FLOAT, "real"), cast("real", UINT8, "y")], UINT8),
        ([node("BitShift", ["x", "x"], "y", direction="RIGHT")], UINT8),
        (
            [
                cast("x", BOOL, "any"),
                node("ReduceMax", ["any"], "one", keepdims=0),
                node("If", ["one"], "y", then_branch=turn("then"), else_branch=turn("else")),
            ],
            UINT8,
        ),
    ],
    ids=["cast of an input", "cast to an output", "operator that integers lack", "branches"],
)
def test_other_models_are_left_alone(tmp_path: Path, nodes: list[Any], output: int) -> None:
    """Those that TensorRT takes as they are, and those that would not answer the same."""
    path = onnx_models.save(tmp_path / "other.onnx", nodes, IMAGE, {"y": (output, [None] * 4)})
    assert changed_by(widen_bytes, path) is None


def test_model_without_bytes_is_left_alone(tmp_path: Path) -> None:
    """Nothing is inferred or written for it."""
    assert changed_by(widen_bytes, onnx_models.relu(tmp_path)) is None


def test_output_that_is_an_input_or_another_output_keeps_its_name(tmp_path: Path) -> None:
    """Such a model is left alone: a cast to bytes could give one of the two its name, and not both."""
    turned = [node("Transpose", ["x"], "y")]
    planes = (UINT8, [None] * 4)
    path = onnx_models.save(tmp_path / "input.onnx", turned, IMAGE, {"x": IMAGE["x"], "y": planes})
    assert changed_by(widen_bytes, path) is None
    path = onnx_models.save(tmp_path / "alone.onnx", turned, IMAGE, {"y": planes})
    assert changed_by(widen_bytes, path) is not None
    model = onnx.load(path)
    model.graph.output.append(model.graph.output[0])
    assert widen_bytes(model, tmp_path) is None
