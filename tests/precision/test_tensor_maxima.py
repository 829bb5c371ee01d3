"""How large tensors become on real data.

Enters: small models and batches. Leaves: proof that the largest value of any batch counts, and that data is streamed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import torch2engine as t2e
from tests.support.onnx_models import FLOAT, save
from torch2engine.precision.graph.tensor_maxima import absolute_maxima


def squares(folder: Path) -> Path:
    """y = x² - 1."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Sub", ["square", "one"], ["y"], name="minus"),
    ]
    one = {"one": np.float32(1)}
    path = save(folder / "squares.onnx", nodes, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])}, one)
    import onnx

    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    return path


def test_largest_value_of_any_batch_counts(tmp_path: Path) -> None:
    """Over batches of several sizes, for inputs, tensors inside and outputs, whatever their sign."""
    batches = [{"x": np.full((rows, 3), value, np.float32)} for rows, value in ((1, -30), (4, 2), (2, 0.5))]
    found = absolute_maxima(squares(tmp_path), batches)
    assert found == {"x": 30.0, "square": 900.0, "y": 899.0}


def test_values_that_are_not_finite_count_as_infinite(tmp_path: Path) -> None:
    """An overflow in float32, or a NaN, is larger than anything."""
    for value in (1e30, np.nan):
        found = absolute_maxima(squares(tmp_path), [{"x": np.full((1, 3), value, np.float32)}])
        assert found["square"] == float("inf")


def test_empty_batch_says_nothing(tmp_path: Path) -> None:
    """A batch without rows is no error and no value."""
    found = absolute_maxima(squares(tmp_path), [{"x": np.zeros((0, 3), np.float32)}])
    assert found == {"x": 0.0, "square": 0.0, "y": 0.0}


def test_data_is_streamed(tmp_path: Path) -> None:
    """No more than two batches are alive at a time: the one that is used, and the one that is being made."""
    alive: list[weakref.ref[NDArray[Any]]] = []
    most = 0

    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        nonlocal most
        for _ in range(20):
            x = np.ones((2, 3), np.float32)
            alive.append(weakref.ref(x))
            most = max(most, sum(one() is not None for one in alive))
            yield {"x": x}

    absolute_maxima(squares(tmp_path), batches())
    assert len(alive) == 20
    assert most <= 2


def test_no_data_is_refused(tmp_path: Path) -> None:
    """An empty iterable would make everything look small."""
    with pytest.raises(t2e.InputError) as caught:
        absolute_maxima(squares(tmp_path), [])
    assert str(caught.value) == (
        "calibration: got no batch; expected an iterable of inputs in the form of sample_input; pass e.g. "
        "calibration=[batch, ...]"
    )
