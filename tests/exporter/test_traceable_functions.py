"""Functions that look into sizes or values are traced: each is PyTorch's, for every form of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.models import answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.core.spec import Axis
from torch2engine.exporter.traceable_functions import TraceableFunctions

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, generator=GENERATOR)
COUNTS = torch.tensor([1, 2, 1, 3, 1, 2])
WEIGHTS = torch.rand(6, generator=GENERATOR)

# Those that are replaced at static sizes too.
CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "cov": lambda: torch.cov(X),
    "cov of a row": lambda: torch.cov(X[0], correction=0),
    "cov with counts": lambda: torch.cov(X, fweights=COUNTS),
    "cov with weights": lambda: torch.cov(X, aweights=WEIGHTS, correction=0),
    "cov with both": lambda: torch.cov(X, fweights=COUNTS, aweights=WEIGHTS),
    "corrcoef": lambda: torch.corrcoef(X),
    "corrcoef of a row": lambda: torch.corrcoef(X[0]),
    "gaussian_nll_loss": lambda: functional.gaussian_nll_loss(X, -X, X.abs(), full=True),
    "gaussian_nll_loss of rows": lambda: functional.gaussian_nll_loss(X, -X, X[:, 0].abs(), reduction="none"),
    "gaussian_nll_loss of a number": lambda: functional.gaussian_nll_loss(X, -X, 0.5, reduction="sum"),
}


@pytest.mark.parametrize("name", CALLS)
def test_static_function_is_pytorchs(name: str) -> None:
    """Without its look into values."""
    with TraceableFunctions():
        found = CALLS[name]()
    torch.testing.assert_close(found, CALLS[name]())


class _OfSizes(nn.Module):
    """Every function whose sizes torch would take for numbers."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        order = x.argsort(0)
        return {
            "taken": torch.take_along_dim(x, order[:, :1], 0),
            "taken from the end": torch.take_along_dim(x, -order, 0),
            "taken flat": torch.take_along_dim(x, order),
            "kron": torch.kron(x, x[0, :2]),
            "multi_dot": torch.linalg.multi_dot([x.T, x, x[0]]),
            "gradient": torch.gradient(x),
            "steps": torch.gradient(x, spacing=[0.5, 2.0], edge_order=2),
            "cov": torch.cov(x),
        }


def test_dynamic_function_is_right_at_every_size() -> None:
    """The smallest size, another one and the largest."""
    model = _OfSizes()
    artifact, _ = exported(model, torch.randn(5, 6), {"x": {0: Axis("n", 3, 5, 9)}})
    for size in (3, 4, 9):
        x = torch.randn(size, 6, generator=GENERATOR)
        found = answer(artifact, ParityCase("", (x,), {}))
        expected = torch.utils._pytree.tree_leaves(model(x))
        assert len(found) == len(expected)
        for value, right in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(value), right, rtol=1e-4, atol=1e-5)


class _LeastSquares(nn.Module):
    """An operator whose results have a shape that depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.lstsq(x, x).solution


def test_shape_from_values_is_refused_by_name() -> None:
    """With the line, and why it can't be traced."""
    with pytest.raises(UnsupportedOperatorError, match=r"aten\.linalg_lstsq") as error:
        exported(_LeastSquares(), X)
    (node,) = error.value.nodes
    assert "depends on values" in node.reason
    assert __file__ in node.source
