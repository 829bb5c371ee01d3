"""Products over a few elements are written out for TensorRT-RTX, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.builder.rewrites.builder_input import changed_by
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.short_products_to_multiplications import write_out_short_products

FORMS = {
    "since opset 18": (22, "<keepdims = {keep}> (x, axes)"),
    "an attribute": (13, "<keepdims = {keep}, axes = [{axis}]> (x)"),
}


def save(folder: Path, form: str, shape: str, axis: int, keep: int) -> Path:
    """A file with one product along an axis."""
    opset, call = FORMS[form]
    axes = f"<int64[1] axes = {{{axis}}}>" if "axes)" in call else ""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> graph (float[{shape}] x) => (float[{",".join("abc")}] y)'
    if not keep:
        header = header.replace("a,b,c", "a,b")
    body = call.format(keep=keep, axis=axis)
    model: Any = onnx.parser.parse_model(f"{header} {axes} {{ y = ReduceProd {body} }}")
    model.graph.node[0].name = "product"
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def answer(model: bytes, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [("n,5,2", -1), ("3,n,5", 0), ("n,4,6", 1)])
@pytest.mark.parametrize("form", FORMS)
def test_short_product_is_written_out(form: str, shape: str, axis: int, keep: int, tmp_path: Path) -> None:
    """With the axis or without it; the new nodes begin with the node's name."""
    path = save(tmp_path, form, shape, axis, keep)
    written = changed_by(write_out_short_products, path) or b""
    onnx.checker.check_model(written, full_check=True)
    nodes = onnx.load_model_from_string(written).graph.node
    assert {(node.name.split("/")[0], node.op_type) for node in nodes} == {
        ("product", operator) for operator in ("Constant", "Gather", "Mul")
    }
    sizes = [7 if size == "n" else int(size) for size in shape.split(",")]
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    np.testing.assert_allclose(answer(written, x), answer(path.read_bytes(), x), rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [("3,5,n", -1), ("3,5,7", -1), ("3,5,1", -1)])
def test_long_products_and_unknown_sizes_stay(shape: str, axis: int, tmp_path: Path) -> None:
    """A product of many elements, of one, or of a number that varies is as it was."""
    path = save(tmp_path, "since opset 18", shape, axis, 1)
    assert changed_by(write_out_short_products, path) is None


def test_only_rtx_needs_it(tmp_path: Path) -> None:
    """TensorRT itself reads the file as it is."""
    path = save(tmp_path, "since opset 18", "n,5,2", -1, 0)
    assert parser_input(path, is_rtx=True, cuts_sums=False) is not None
    assert parser_input(path, is_rtx=False, cuts_sums=False) is None
