"""Second names of operators take integers beside floats, as the first ones do."""

from __future__ import annotations

import torch

from tests.support.models import Function, error_of, exported


def test_second_names_promote_their_arguments() -> None:
    """A float divided by, multiplied with and compared to integers; integers subtracted from numbers of both kinds."""
    count = torch.tensor([1, 2, 3])
    model = Function(
        lambda x, w: {
            "divided": torch.divide(x, count),
            "multiplied": torch.multiply(x, count),
            "subtracted": torch.subtract(x, count),
            "greater": torch.greater(x, count),
            "less": torch.less_equal(x, 1),
            "hidden": 1.0 - (x > 0).long(),
            "scaled": torch.rsub((x > 0).long(), 2.5, alpha=2),
            "whole": 1 - count,
        }
    )
    artifact, cases = exported(model, torch.randn(4, 3))
    assert error_of(artifact, cases) < 1e-6
