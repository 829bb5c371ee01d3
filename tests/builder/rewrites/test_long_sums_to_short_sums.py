"""Long float32 sums are cut for TensorRT-RTX, into the same answers; what need not or can't be cut is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from tests.builder.rewrites.builder_input import changed_by, layers_of
from tests.support import onnx_models
from torch2engine.builder.rewrites.long_sums_to_short_sums import LONGEST_SUM, split_long_sums

FLOAT = onnx_models.FLOAT
LONG = LONGEST_SUM + 465


def save(
    folder: Path,
    operator: str,
    x: list[int],
    weight: list[int],
    y: list[int],
    *,
    opset: int = 18,
    dtype: type = np.float32,
    **attributes: Any,
) -> Path:
    """y = operator(x, weight, bias) with random weights; MatMul has no bias."""
    random = np.random.default_rng(0)
    constants = {"weight": random.standard_normal(weight, dtype=np.float32).astype(dtype)}
    if operator != "MatMul":
        constants["bias"] = random.standard_normal(y[1], dtype=np.float32).astype(dtype)
    node = helper.make_node(operator, ["x", *constants], ["y"], name="layer", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    path = folder / f"{operator}.onnx"
    return onnx_models.save(path, [node], {"x": (kind, x)}, {"y": (kind, y)}, constants, opset=opset)


def answer(model: bytes, x: np.ndarray) -> np.ndarray:
    """y of ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def products(model: bytes) -> list[Any]:
    """The nodes that multiply, by graph order."""
    return [
        node for node in onnx.load_model_from_string(model).graph.node if node.op_type in ("Conv", "MatMul", "Gemm")
    ]


CASES = {
    "conv": ("Conv", [2, 400, 5, 7], [6, 400, 3, 3], [2, 6, 3, 4], {"strides": [1, 2], "pads": [0, 1, 0, 1]}, 3),
    "conv of one channel wider than the bound": ("Conv", [1, 2, 40, 50], [3, 2, 40, 50], [1, 3, 1, 1], {}, 2),
    "matrix product": ("MatMul", [2, 3, LONG], [LONG, 5], [2, 3, 5], {}, 2),
    "batched matrix product": ("MatMul", [2, 3, LONG], [2, LONG, 5], [2, 3, 5], {}, 2),
    "gemm": ("Gemm", [3, LONG], [LONG, 5], [3, 5], {"alpha": 0.5, "beta": 2.0}, 2),
    "transposed gemm": ("Gemm", [LONG, 3], [5, LONG], [3, 5], {"transA": 1, "transB": 1}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_long_sum_becomes_the_sum_of_short_ones(case: str, tmp_path: Path) -> None:
    """The answer stays, the bias is added once, no piece is longer than the bound, and names begin as before."""
    operator, x, weight, y, attributes, pieces = CASES[case]
    path = save(tmp_path, operator, x, weight, y, **attributes)
    split = changed_by(split_long_sums, path)
    assert split is not None
    onnx.checker.check_model(onnx.load_model_from_string(split), full_check=True)
    assert [node.name.split("/")[0] for node in products(split)] == ["layer"] * pieces
    data = np.random.default_rng(1).standard_normal(x, dtype=np.float32)
    np.testing.assert_allclose(answer(split, data), answer(path.read_bytes(), data), rtol=1e-4, atol=1e-4)


SHORT = {
    "a sum at the bound": ("MatMul", [3, LONGEST_SUM], [LONGEST_SUM, 5], [3, 5], {}),
    "groups": ("Conv", [1, 400, 5, 5], [6, 200, 3, 3], [1, 6, 3, 3], {"group": 2}),
    "half precision": ("MatMul", [3, LONG], [LONG, 5], [3, 5], {"dtype": np.float16}),
    "a vector": ("MatMul", [3, LONG], [LONG], [3], {}),
}


@pytest.mark.parametrize("case", SHORT)
def test_other_products_stay_whole(case: str, tmp_path: Path) -> None:
    """Short sums, groups and other dtypes are TensorRT's own affair."""
    operator, x, weight, y, options = SHORT[case]
    assert changed_by(split_long_sums, save(tmp_path, operator, x, weight, y, **options)) is None


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_file_of_an_old_opset_is_cut_into_nodes_that_it_has(opset: int, tmp_path: Path) -> None:
    """What was added to a Constant in opset 12 is not used."""
    path = save(tmp_path, "MatMul", [3, LONG], [LONG, 5], [3, 5], opset=opset)
    split = changed_by(split_long_sums, path)
    assert split is not None
    onnx.checker.check_model(onnx.load_model_from_string(split), full_check=True)
    data = np.random.default_rng(1).standard_normal((3, LONG), dtype=np.float32)
    np.testing.assert_allclose(answer(split, data), answer(path.read_bytes(), data), rtol=1e-4, atol=1e-4)


def test_file_of_an_opset_without_bounds_as_inputs_is_left_alone(tmp_path: Path) -> None:
    """Slice had attributes before opset 10."""
    assert changed_by(split_long_sums, save(tmp_path, "MatMul", [3, LONG], [LONG, 5], [3, 5], opset=9)) is None


def test_product_of_two_computed_tensors_stays_whole(tmp_path: Path) -> None:
    """A weight that a caller gives is no constant."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs = {"x": (FLOAT, [3, LONG]), "w": (FLOAT, [LONG, 5])}
    assert (
        changed_by(split_long_sums, onnx_models.save(tmp_path / "two.onnx", [node], inputs, {"y": (FLOAT, [3, 5])}))
        is None
    )


def test_product_in_a_branch_is_cut_too(tmp_path: Path) -> None:
    """A branch's weights may lie outside of it."""
    weights = {"weight": np.ones((LONG, 5), np.float32)}
    value = helper.make_tensor_value_info("z", FLOAT, [3, 5])
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["z"], name="layer")], "branch", [], [value]
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    inputs = {"x": (FLOAT, [3, LONG]), "condition": (onnx.TensorProto.BOOL, [])}
    path = onnx_models.save(tmp_path / "if.onnx", [node], inputs, {"y": (FLOAT, [3, 5])}, weights, opset=18)
    split = changed_by(split_long_sums, path)
    assert split is not None
    model = onnx.load_model_from_string(split)
    onnx.checker.check_model(model)
    branches = [attribute.g for attribute in model.graph.node[-1].attribute]
    assert [[part.op_type for part in branch.node].count("MatMul") for branch in branches] == [2, 2]


def test_external_weights_are_cut_without_being_read(tmp_path: Path) -> None:
    """The weights stay in their file, and TensorRT finds them there."""
    path = save(tmp_path, "MatMul", [3, LONG], [LONG, 5], [3, 5])
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    split = changed_by(split_long_sums, path)
    assert split is not None
    assert len(split) < (tmp_path / "weights.bin").stat().st_size
    assert layers_of(path).count("MATRIX_MULTIPLY") == 2


@pytest.mark.parametrize(
    ("precision", "refittable", "pieces"), [("fp32", False, 2), ("tf32", False, 1), ("fp32", True, 1)]
)
def test_only_float32_engines_that_keep_their_weights_are_cut(
    precision: str, refittable: bool, pieces: int, tmp_path: Path
) -> None:
    """A refit finds a weight by its name in the file, and TF32 rounds more than a long sum."""
    path = save(tmp_path, "MatMul", [3, LONG], [LONG, 5], [3, 5])
    assert layers_of(path, precision, refittable).count("MATRIX_MULTIPLY") == pieces
