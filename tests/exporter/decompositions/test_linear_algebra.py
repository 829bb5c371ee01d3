"""Small matrices: PyTorch's inverses, solutions and determinants; larger ones are refused by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.support.models import BATCH, error_of, exported
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.exporter.decompositions.linear_algebra import LARGEST, LINEAR_ALGEBRA

GENERATOR = torch.Generator().manual_seed(0)
SQUARE = {size: torch.randn(3, size, size, generator=GENERATOR) + torch.eye(size) for size in (1, 2, 5, 12)}
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("matrix", SQUARE.values(), ids=map(str, SQUARE))
def test_equations_are_solved(matrix: torch.Tensor) -> None:
    """For columns, for one vector, from the right, and by the inverse; rows are exchanged where a pivot is small."""
    right = torch.randn(3, matrix.shape[-1], 2, generator=GENERATOR)
    solve = LINEAR_ALGEBRA["linalg_solve"]
    close(solve(matrix, right), torch.linalg.solve(matrix, right))
    close(solve(matrix[0], right[0, :, 0]), torch.linalg.solve(matrix[0], right[0, :, 0]))
    close(solve(matrix, right.mT, left=False), torch.linalg.solve(matrix, right.mT, left=False))
    close(LINEAR_ALGEBRA["linalg_inv"](matrix), torch.linalg.inv(matrix))
    zero_first = matrix.roll(1, -2)
    zero_first[..., 0, 0] = 0.0 if matrix.shape[-1] > 1 else 2.0
    close(LINEAR_ALGEBRA["linalg_inv"](zero_first), torch.linalg.inv(zero_first))


@pytest.mark.parametrize("matrix", SQUARE.values(), ids=map(str, SQUARE))
def test_determinants_have_their_sign(matrix: torch.Tensor) -> None:
    """An exchange of rows turns it."""
    for rows in (matrix, matrix.flip(-2)):
        close(LINEAR_ALGEBRA["linalg_det"](rows), torch.linalg.det(rows))
        close(LINEAR_ALGEBRA["linalg_slogdet"](rows), tuple(torch.linalg.slogdet(rows)))
        close(LINEAR_ALGEBRA["logdet"](rows), torch.logdet(rows), equal_nan=True)


@pytest.mark.parametrize("singular", [torch.zeros(3, 3), torch.tensor([[1.0, 2.0], [2.0, 4.0]])])
def test_singular_matrix_has_the_determinant_zero(singular: torch.Tensor) -> None:
    """Not NaN, though the elimination divides by zero."""
    assert LINEAR_ALGEBRA["linalg_det"](singular).item() == 0.0
    sign, logarithm = LINEAR_ALGEBRA["linalg_slogdet"](singular)
    assert (sign.item(), logarithm.item()) == (0.0, -torch.inf)


@pytest.mark.parametrize("matrix", SQUARE.values(), ids=map(str, SQUARE))
@pytest.mark.parametrize("upper", [False, True])
def test_triangular_equations_are_solved(matrix: torch.Tensor, upper: bool) -> None:
    """Equations that read one triangle alone."""
    positive = matrix @ matrix.mT + torch.eye(matrix.shape[-1])
    for rows, is_unit in ((positive, False), (0.1 * matrix, True)):
        found = LINEAR_ALGEBRA["linalg_solve_triangular"](rows, matrix, upper=upper, unitriangular=is_unit)
        expected = torch.linalg.solve_triangular(rows, matrix, upper=upper, unitriangular=is_unit)
        close(found / expected.abs().amax(), expected / expected.abs().amax())


def test_tensors_are_inverted_as_matrices() -> None:
    """The first dimensions are the rows; equations of a triangle may be transposed."""
    tensor = torch.randn(2, 3, 6, generator=GENERATOR)
    close(LINEAR_ALGEBRA["linalg_tensorinv"](tensor), torch.linalg.tensorinv(tensor))
    matrix = SQUARE[5] + 4 * torch.eye(5)
    for upper, transpose, is_unit in ((True, False, False), (False, True, False), (True, True, True)):
        arguments = (SQUARE[5], matrix, upper, transpose, is_unit)
        close(LINEAR_ALGEBRA["triangular_solve"](*arguments), tuple(torch.ops.aten.triangular_solve(*arguments)))


class _Inverse(nn.Module):
    """The inverse of a batch of matrices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


def test_inverse_is_exported_for_a_dynamic_batch() -> None:
    """ONNX Runtime answers as PyTorch does."""
    artifact, cases = exported(_Inverse(), torch.randn(4, 3, 3) + 4 * torch.eye(3), {"x": BATCH})
    assert error_of(artifact, cases[:3]) < 1e-5


def test_large_matrix_is_refused_by_name() -> None:
    """The inverse is named, or the only part of it that has no form."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(_Inverse(), torch.eye(LARGEST + 1))
    assert [node.op.removesuffix("_ex") for node in error.value.nodes] == ["aten.linalg_inv"]
