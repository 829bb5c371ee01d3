"""Cyclic shifts become slices, with the same answers; other lists of places stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.builder.rewrites.builder_input import changed_by
from tests.support import onnx_models
from torch2engine.builder.rewrites.cyclic_shifts_to_slices import slice_cyclic_shifts


def save(folder: Path, places: Any, axis: int = 1, opset: int = 22) -> Path:
    """A file that takes places along an axis of 5."""
    shape: list[Any] = ["batch", 5, 5]
    result = [*shape[:axis], np.size(places), *shape[axis + 1 :]] if axis >= 0 else ["batch", 5, np.size(places)]
    node = helper.make_node("Gather", ["x", "places"], ["y"], name="roll", axis=axis)
    return onnx_models.save(
        folder / "shift.onnx",
        [node],
        {"x": (TensorProto.FLOAT, shape)},
        {"y": (TensorProto.FLOAT, result)},
        {"places": np.asarray(places, np.int64)},
        opset=opset,
    )


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("places", [[2, 3, 4, 0, 1], [4, 0, 1, 2, 3], [1, 2, 0]], ids=str)
def test_shift_becomes_two_slices(tmp_path: Path, places: list[int], axis: int) -> None:
    """Along any axis, also of a front part of it; new names begin with the node's."""
    path = save(tmp_path, places, axis)
    changed = changed_by(slice_cyclic_shifts, path)
    assert changed is not None
    model = onnx.load_model_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Slice") == 2
    assert "Gather" not in kinds
    assert not model.graph.initializer  # nobody reads the places any more
    assert {node.name.split("/")[0] for node in model.graph.node} == {"roll"}
    x = np.random.default_rng(0).standard_normal((3, 5, 5), np.float32)
    found: Any
    expected: Any
    found, expected = (
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in (changed, path.read_bytes())
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "places",
    [[0, 1, 2, 3, 4], [2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 2, 3, 4], [-4, -3, -2, -1, 0], [2, 2], [0]],
    ids=str,
)
def test_other_places_stay(tmp_path: Path, places: list[int]) -> None:
    """Nothing else is two ranges one after the other."""
    assert changed_by(slice_cyclic_shifts, save(tmp_path, places)) is None


def test_old_opset_stays(tmp_path: Path) -> None:
    """Its Slice is another operator."""
    assert changed_by(slice_cyclic_shifts, save(tmp_path, [1, 2, 0], opset=9)) is None
