"""A file that needs several changes gets all of them, in one reading; a file that needs none stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.support import onnx_models
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.long_sums_to_short_sums import LONGEST_SUM

LONG = LONGEST_SUM + 10
# Bytes that are turned, a long float32 sum, and an activation between a linear layer and a product.
NODES = (
    f'<ir_version: 10, opset_import: ["" : 20]> graph (uint8[n,{LONG}] x, float[4] b) => (float[n,4] y) '
    "{ t = Transpose(x) s = Transpose(t) r = Cast<to = 1>(s) u = MatMul(r, w) v = Relu(u) y = Mul(v, b) }"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with all of it."""
    model: Any = onnx.parser.parse_model(NODES)
    weight = np.random.default_rng(0).standard_normal((LONG, 4), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path_factory.mktemp("input") / "model.onnx"
    onnx.save(model, path)
    return path


def operators(model: bytes | None) -> list[str]:
    """The operators of a model, in their order."""
    assert model is not None
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def test_every_change_is_made_and_the_answers_stay(path: Path) -> None:
    """A later change works on what an earlier one has made."""
    changed = parser_input(path, is_rtx=True, cuts_sums=True)
    found = operators(changed)
    assert found.count("MatMul") == 2  # the pieces of the sum
    assert found.count("Add") == 2  # their sum, and the zero behind the activation
    assert found.index("Cast") < found.index("Transpose")  # the bytes are integers at once
    assert changed is not None
    x = np.random.default_rng(1).integers(0, 256, (3, LONG), np.uint8)
    feeds = {"x": x, "b": np.arange(4, dtype=np.float32)}
    expected, answer = (
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for model in (path.read_bytes(), changed)
    )
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-2)


def test_sums_stay_whole_where_the_weights_must(path: Path) -> None:
    """The other changes are made."""
    found = operators(parser_input(path, is_rtx=True, cuts_sums=False))
    assert found.count("MatMul") == found.count("Add") == 1


def test_tensorrt_gets_no_change_that_only_tensorrt_rtx_needs(path: Path) -> None:
    """Bytes are all that TensorRT lacks too."""
    found = operators(parser_input(path, is_rtx=False, cuts_sums=True))
    assert found.index("Cast") < found.index("Transpose")
    assert found.count("MatMul") == 1
    assert "Add" not in found


def test_file_that_needs_no_change_stays(tmp_path: Path) -> None:
    """The parser reads the file itself."""
    assert parser_input(onnx_models.relu(tmp_path), is_rtx=True, cuts_sums=True) is None


def test_file_that_needs_no_change_is_read_without_onnx_ir(tmp_path: Path, run_python: Callable[[str], Any]) -> None:
    """Loading onnx_ir takes longer than TensorRT takes for a small engine."""
    code = (
        "import json, sys; from pathlib import Path; from torch2engine.builder.parser_input import parser_input; "
        f"parser_input(Path({str(onnx_models.relu(tmp_path))!r}), is_rtx=True, cuts_sums=True); "
        'print(json.dumps([name in sys.modules for name in ("onnx", "onnx_ir")]))'
    )
    assert run_python(code) == [True, False]
