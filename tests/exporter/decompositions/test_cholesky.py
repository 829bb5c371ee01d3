"""Cholesky's factor: PyTorch's, also of matrices that are not positive definite."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from torch2engine.exporter.decompositions.cholesky import CHOLESKY

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(3, 5, 5, generator=GENERATOR)
POSITIVE = ROWS @ ROWS.mT + torch.eye(5)
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upper", [False, True])
def test_factor_solves_equations(upper: bool) -> None:
    """It is PyTorch's, and so are the solutions and inverses that are computed by it."""
    factor = torch.linalg.cholesky(POSITIVE, upper=upper)
    close(CHOLESKY["linalg_cholesky"](POSITIVE, upper=upper), factor)
    close(CHOLESKY["cholesky"](POSITIVE, upper), factor)
    close(CHOLESKY["cholesky_solve"](ROWS, factor, upper), torch.cholesky_solve(ROWS, factor, upper))
    close(CHOLESKY["cholesky_inverse"](factor, upper), torch.cholesky_inverse(factor, upper))


@pytest.mark.parametrize("upper", [False, True])
def test_failure_tells_the_first_column(upper: bool) -> None:
    """The columns before it are the factor's, the others are the matrix's own, as LAPACK leaves them."""
    symmetric = ROWS + ROWS.mT
    matrices = torch.stack((symmetric[0] + 3 * torch.eye(5), symmetric[1], POSITIVE[0]))
    factor, failure = CHOLESKY["linalg_cholesky_ex"](matrices, upper=upper)
    expected = torch.linalg.cholesky_ex(matrices, upper=upper)
    assert failure.tolist() == expected.info.tolist()
    assert failure[:2].all()
    assert not failure[2]
    close(factor, expected.L)


def test_factor_is_not_a_number_where_pytorch_refuses() -> None:
    """An engine can't raise an error; other matrices of the batch keep their factor."""
    factor = CHOLESKY["linalg_cholesky"](torch.stack((-torch.eye(3), torch.eye(3))))
    assert factor[0].isnan().all()
    close(factor[1], torch.eye(3))
