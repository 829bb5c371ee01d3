"""The gamma function's logarithm and its derivatives: PyTorch's, also below zero."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.gamma_functions import GAMMA_FUNCTIONS

X = torch.tensor([-7.25, -3.5, -1.75, -0.6, -0.01, 0.01, 0.4, 1.0, 1.46, 2.0, 3.3, 7.0, 25.0, 1e4])


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_logarithm_and_derivative_are_pytorchs(name: str) -> None:
    """On both sides of zero, near it, between the poles, at the roots, and far away."""
    right = getattr(torch, name)(X.double()).float()
    torch.testing.assert_close(GAMMA_FUNCTIONS[name](X), right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_further_derivatives_are_pytorchs(order: int) -> None:
    """The zeroth is digamma; PyTorch has the others above zero."""
    x = X[X > 0]
    right = torch.polygamma(order, x.double()).float()
    torch.testing.assert_close(GAMMA_FUNCTIONS["polygamma"](order, x), right, rtol=1e-4, atol=1e-5)
