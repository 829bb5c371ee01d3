"""Functions that look into sizes or values are traced: each is PyTorch's, for every form of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.models import answer, error_of, exported
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
    "einsum": lambda: torch.einsum("ab,cb,cd->ad", X, X, X),
    "einsum of a list": lambda: torch.einsum("ab,cb,cd", [X, X, X]),
    "einsum of places": lambda: torch.einsum(X, [0, 1], X, [2, 1], X, [2, 3], [0, 3]),
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


def _read_sizes(equation: str, *operands: torch.Tensor, optimize: Any) -> tuple[list[tuple[int, ...]], str]:
    """opt_einsum's `contract_path`: it makes numbers of all sizes."""
    sizes = [[int(size) for size in operand.shape] for operand in operands]
    assert optimize == "auto" and all(sizes)
    return [(0, 1)] * (len(sizes) - 1), equation


@pytest.fixture
def _opt_einsum(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's settings where opt_einsum is installed."""
    settings: Any = torch.backends.opt_einsum
    monkeypatch.setattr(settings.m, "_opt_einsum", SimpleNamespace(contract_path=_read_sizes))
    settings.is_available.cache_clear()
    monkeypatch.setattr(settings.m, "enabled", True)
    monkeypatch.setattr(settings.m, "strategy", "auto")


class _Contraction(nn.Module):
    """Three tensors in one einsum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ab,cb,cd->ad", x, x, x)


@pytest.mark.usefixtures("_opt_einsum")
def test_einsum_keeps_its_sizes_where_opt_einsum_is_installed() -> None:
    """The order of the products is not chosen by sizes while a model is traced."""
    artifact, cases = exported(_Contraction(), X, {"x": {0: Axis("n", 2, 4, 9)}})
    assert error_of(artifact, cases) < 1e-5


class _WritesIntoData(nn.Module):
    """Writes through `.data` into numbers of its own and into a result, and reads a weight through it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        factors.data[0] = 7.0
        y = x * factors
        y.data[:, 1].mul_(2.0)
        return y * self.scale.data


def test_write_through_data_is_kept() -> None:
    """torch itself takes such numbers out of its program, and ends in words about fake tensors."""
    artifact, cases = exported(_WritesIntoData(), X, {"x": {0: Axis("n", 2, 4, 9)}})
    assert error_of(artifact, cases) < 1e-6


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
