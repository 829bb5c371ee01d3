"""Writes at a mask become a choice of values, right and without a size that depends on values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.support.build_here import build_here
from tests.support.models import Function, error_of, exported
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.core.spec import Axis

AXES = {"x": {1: Axis("n", 2, 5, 9)}}


def written(x: torch.Tensor, w: Any) -> dict[str, torch.Tensor]:
    """Each way to write rows or elements at a mask."""
    mask = x > 0
    elements = x.clone()
    elements[mask] *= 2
    elements[~mask] = elements[~mask].abs().clamp(max=1.5) + torch.tanh(x[~mask])
    rows = x.clone()
    keep = x.sum(2) > 0
    rows[keep] = rows[keep] * x[0, 0] + x.exp()[keep]
    tokens = x.clone()
    tokens[keep] = x[0, 0]
    tokens[~keep] = 0.5
    columns = x.clone()
    columns[:, keep[0]] += x[0, 0, 0]
    return {"elements": elements, "rows": rows, "tokens": tokens, "columns": columns}


def test_rows_that_are_read_and_written_at_one_mask_are_right_and_build() -> None:
    """Every size of the axis gives PyTorch's answers, and TensorRT has all operators."""
    artifact, cases = exported(Function(written), torch.randn(2, 5, 3), AXES)
    assert error_of(artifact, cases) < 1e-6
    build_here(artifact)


class Mixture(nn.Module):
    """Experts that take their tokens by each form of places, and add or write what they make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, 4)
        weights, chosen = self.gate(tokens).softmax(-1).max(-1, keepdim=True)
        chosen = chosen[:, 0]
        y = torch.zeros_like(tokens)
        first = torch.where(chosen == 0)[0]
        y.index_add_(0, first, self.experts[0](tokens[first]) * weights[first])
        second = (chosen == 1).nonzero().squeeze(-1)
        y[second] = torch.nn.functional.gelu(self.norm(self.experts[1](tokens[second])))
        (third,) = torch.nonzero(chosen == 2, as_tuple=True)
        y[third] += self.experts[2](tokens[third]).softmax(-1)
        return y.view(x.shape)


def test_experts_that_take_their_tokens_are_right_and_build() -> None:
    """Each token goes through its expert, for every batch and length."""
    torch.manual_seed(0)
    axes = {"x": {0: Axis("b", 1, 2, 4), 1: Axis("n", 2, 5, 9)}}
    artifact, cases = exported(Mixture().eval(), torch.randn(2, 5, 4), axes)
    assert error_of(artifact, cases) < 1e-5
    build_here(artifact)


def summed(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Sums at places that come from no mask."""
    y = torch.zeros_like(x[0])
    y.index_add_(0, x[0, :, 0].argsort(), x[1])
    return y


def test_sums_at_other_places_stay_sums() -> None:
    """Nothing changes in a program without masks."""
    artifact, cases = exported(Function(summed), torch.randn(2, 5, 3), AXES)
    assert error_of(artifact, cases) == 0


def counted(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The chosen rows are only counted, for a check."""
    keep = x > 0
    torch._check(x[keep].numel() <= x.numel())
    torch._check_tensor_all(x.abs() < 100)
    return torch.where(keep, x, 0)


def test_rows_that_are_only_counted_for_a_check_go_with_it() -> None:
    """An engine can't stop on a check; what it alone needs has no place in the graph."""
    artifact, cases = exported(Function(counted), torch.randn(2, 5, 3), AXES)
    assert error_of(artifact, cases) == 0
    build_here(artifact)


def shifted(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The rows are mixed before they are written."""
    y = x.clone()
    y[x > 0] = y[x > 0].cumsum(0)
    return y


def moved(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The rows come from another mask."""
    y = x.clone()
    y[x > 0] = x[x.flip(1) > 0] * 2
    return y


def centred(x: torch.Tensor, w: Any) -> torch.Tensor:
    """A value of each chosen row, which has a size of its own."""
    y = x.clone()
    keep = x.sum(2) > 0
    y[keep] = (y[keep].sum(1, keepdim=True) * 2).expand(-1, 3)
    return y


def elsewhere(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The places are those of another tensor's rows."""
    y = x.clone()
    places = torch.where(x[0, :2, 0] > 0)[0]
    y[:, places] = y[:, places] * 2
    return y


@pytest.mark.parametrize("function", [shifted, moved, centred, elsewhere])
def test_rows_that_are_not_computed_one_by_one_are_refused(function: Any) -> None:
    """A choice of values would be wrong, or is not known to be right: the size that depends on values stays named."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(Function(function), torch.randn(2, 5, 3), AXES)
    assert "a size that depends on values" in str(error.value)
