"""Reductions of tensors with one dimension, and of all dimensions: PyTorch's."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.reductions import REDUCTIONS

TENSORS = [torch.tensor(2.0), torch.tensor([3.0, 1.0, 3.0, 1.0]), torch.tensor([[1.0, 5.0], [5.0, 1.0]])]


@pytest.mark.parametrize("x", TENSORS, ids=["number", "row", "matrix"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_places_are_the_first_of_equal_ones(x: torch.Tensor, keepdim: bool) -> None:
    """In the flattened tensor, or along its only dimension."""
    for name in ("argmax", "argmin"):
        expected = getattr(torch, name)(x, None, keepdim)
        torch.testing.assert_close(REDUCTIONS[name](x, None, keepdim), expected)
        if x.dim() == 1:
            torch.testing.assert_close(REDUCTIONS[name](x, 0, keepdim), expected)
    torch.testing.assert_close(REDUCTIONS["aminmax"](x, keepdim=keepdim), tuple(torch.aminmax(x, keepdim=keepdim)))


@pytest.mark.parametrize("x", TENSORS[1:], ids=["row", "matrix"])
def test_extremes_are_of_all_dimensions(x: torch.Tensor) -> None:
    """Where none is named; otherwise torch.onnx does it."""
    for name in ("amax", "amin"):
        torch.testing.assert_close(REDUCTIONS[name](x), getattr(torch, name)(x))
        assert REDUCTIONS[name](x, [0]) is NotImplemented


def test_extremes_of_bools_and_numbers_are_pytorchs() -> None:
    """TensorRT reduces no bools, and no tensor without dimensions."""
    bools = TENSORS[2] > 1
    for name in ("amax", "amin"):
        for dims in ([], [0], [0, 1]):
            torch.testing.assert_close(REDUCTIONS[name](bools, dims, True), getattr(torch, name)(bools, dims, True))
        torch.testing.assert_close(REDUCTIONS[name](TENSORS[0]), TENSORS[0])
    for order in (0, 1, 2, torch.inf):
        norm = REDUCTIONS["linalg_vector_norm"](-TENSORS[0], order)
        torch.testing.assert_close(norm, torch.linalg.vector_norm(-TENSORS[0], order))
    loss = torch.nn.functional.mse_loss(TENSORS[0], -TENSORS[0])
    torch.testing.assert_close(REDUCTIONS["mse_loss"](TENSORS[0], -TENSORS[0]), loss)


def test_softmax_of_a_row_is_pytorchs() -> None:
    """With a dtype, in half with a float32 result, and not of a matrix."""
    row = TENSORS[1]
    for name, function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        torch.testing.assert_close(REDUCTIONS[f"{name}.int"](row, 0), function(row, 0))
        half = row.half()
        torch.testing.assert_close(REDUCTIONS[f"{name}.int"](half, 0, torch.float32), function(half.float(), 0))
        torch.testing.assert_close(REDUCTIONS[f"_{name}"](half, 0, True), function(half.float(), 0))
        assert REDUCTIONS[f"_{name}"](TENSORS[2], 0, False) is NotImplemented


def test_mean_of_a_number_is_the_number() -> None:
    """In the requested dtype; other means are torch.onnx's."""
    torch.testing.assert_close(REDUCTIONS["mean"](TENSORS[0]), TENSORS[0])
    torch.testing.assert_close(REDUCTIONS["mean.dim"](TENSORS[0], [], dtype=torch.float64), TENSORS[0].double())
    assert REDUCTIONS["mean"](TENSORS[1]) is NotImplemented
