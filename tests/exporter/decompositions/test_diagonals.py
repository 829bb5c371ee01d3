"""Diagonals: PyTorch's, for every offset and pair of dimensions."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.diagonals import DIAGONALS

SHAPES = [(3, 4, 5), (4, 4, 2)]
DIMS = [(0, 1), (2, 0), (-1, -2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("offset", [-5, -2, 0, 1, 4])
def test_diagonals_are_read_and_written(shape: tuple[int, ...], dims: tuple[int, int], offset: int) -> None:
    """Also an empty one, beyond the last row or column."""
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    expected = torch.diagonal(x, offset, *dims)
    torch.testing.assert_close(DIAGONALS["diagonal"](x, offset, *dims), expected)
    if expected.numel():
        found = DIAGONALS["diagonal_scatter"](x, -expected, offset, *dims)
        torch.testing.assert_close(found, torch.diagonal_scatter(x, -expected, offset, *dims))


def test_trace_sums_the_main_diagonal() -> None:
    """Of a matrix that is not square, too."""
    x = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(DIAGONALS["trace"](x), torch.trace(x))


def test_diagonals_of_matrices_are_those_of_the_last_dimensions() -> None:
    """`linalg.diagonal` counts from the end, where `diagonal` counts from the beginning."""
    x = torch.arange(60.0).reshape(3, 4, 5)
    torch.testing.assert_close(DIAGONALS["linalg_diagonal"](x), torch.linalg.diagonal(x))
    other = {"offset": -1, "dim1": 0, "dim2": 2}
    torch.testing.assert_close(DIAGONALS["linalg_diagonal"](x, **other), torch.linalg.diagonal(x, **other))
