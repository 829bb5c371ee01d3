"""Powers and exponentials of matrices: PyTorch's."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.matrix_functions import MATRIX_FUNCTIONS

GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(3, 5, 5, generator=GENERATOR) + torch.eye(5)


@pytest.mark.parametrize("n", [-2, 0, 1, 2, 5])
def test_powers_are_pytorchs(n: int) -> None:
    """By squares; the zeroth is the identity for each matrix."""
    expected = torch.linalg.matrix_power(MATRIX, n)
    torch.testing.assert_close(MATRIX_FUNCTIONS["linalg_matrix_power"](MATRIX, n), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 6.0])
def test_exponential_is_pytorchs(size: float) -> None:
    """Small and large matrices in one batch, each squared as often as it needs."""
    batch = torch.cat((MATRIX * size, MATRIX[:1] * 0.1))
    found = MATRIX_FUNCTIONS["linalg_matrix_exp"](batch)
    expected = torch.linalg.matrix_exp(batch.double()).float()
    scale = expected.abs().amax((-2, -1), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-4, atol=1e-5)


def test_exponential_of_a_large_rotation_is_a_rotation() -> None:
    """A norm of thousands gives no overflow."""
    turn = 4096 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    found = MATRIX_FUNCTIONS["matrix_exp"](turn)
    torch.testing.assert_close(found @ found.mT, torch.eye(2), rtol=0, atol=1e-2)
