"""Group norms of one group are written out for TensorRT-RTX, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.builder.rewrites.builder_input import changed_by, layers_of
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.single_group_norms_to_operators import write_out_single_group_norms

NORM = "GroupNormalization <num_groups = {groups}{more}> ({x}, w, b)"
WEIGHTS = "<float[4] w = {0.5, 2, -1, 3}, float[4] b = {1, 0, -2, 0.5}>"


def save(folder: Path, shape: str, *, groups: int = 1, more: str = "", opset: int = 22) -> Path:
    """A file with a norm of this shape, whose node has a name."""
    norm = NORM.format(groups=groups, more=more, x="x")
    header = f'<ir_version: 10, opset_import: ["" : {opset}]> graph '
    model: Any = onnx.parser.parse_model(
        f"{header} (float[{shape}] x) => (float[{shape}] y) {WEIGHTS} {{ y = {norm} }}"
    )
    model.graph.node[0].name = "norm"
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def answer(model: bytes, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("more", ["", ", epsilon = 0.1"], ids=["usual epsilon", "epsilon"])
@pytest.mark.parametrize("shape", ["n,4,7", "2,4,n,3", "n,4,2,3,5"])
def test_norm_of_one_group_is_written_out(shape: str, more: str, tmp_path: Path) -> None:
    """Its answers are those of a norm over channels and positions; the new nodes begin with its name."""
    path = save(tmp_path, shape, more=more)
    written = changed_by(write_out_single_group_norms, path)
    assert written is not None
    model = onnx.load_model_from_string(written)
    onnx.checker.check_model(model, full_check=True)
    assert {node.name.split("/")[0] for node in model.graph.node} == {"norm"}
    assert "GroupNormalization" not in {node.op_type for node in model.graph.node}
    assert {weight.name for weight in model.graph.initializer} == {"w", "b"}
    sizes = [6 if size == "n" else int(size) for size in shape.split(",")]
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32) * 3 + 1
    np.testing.assert_allclose(answer(written, x), answer(path.read_bytes(), x), rtol=1e-5, atol=1e-5)


def test_half_is_computed_in_float32(tmp_path: Path) -> None:
    """The mean square of large numbers is none of float16's."""
    text = save(tmp_path, "2,4,8").read_bytes()
    model = onnx.load_model_from_string(text)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for weight in model.graph.initializer:
        weight.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), weight.name)
        )
    written: Any = write_out_single_group_norms(model, tmp_path)
    onnx.checker.check_model(written, full_check=True)
    x = (np.random.default_rng(0).standard_normal((2, 4, 8)) * 1000).astype(np.float16)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean((1, 2), keepdims=True)) / wide.std((1, 2), keepdims=True)
    expected = normal * np.array([0.5, 2, -1, 3])[:, None] + np.array([1, 0, -2, 0.5])[:, None]
    np.testing.assert_allclose(answer(written.SerializeToString(), x), expected, rtol=2e-3, atol=2e-3)


def test_norm_of_more_groups_stays_as_it_is(tmp_path: Path) -> None:
    """TensorRT-RTX is right there."""
    assert changed_by(write_out_single_group_norms, save(tmp_path, "n,4,7", groups=2)) is None


def test_only_tensorrt_rtx_gets_it_written_out(tmp_path: Path) -> None:
    """TensorRT has its own kernel; RTX reads no layer that normalises."""
    path = save(tmp_path, "2,4,7")
    assert parser_input(path, is_rtx=False, cuts_sums=False) is None
    layers = layers_of(path)
    assert "REDUCE" in layers
    assert "NORMALIZATION" not in layers
