"""Operators without an ONNX form are named with the user's lines, and other failures of torch.onnx are typed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.support.models import (
    BATCH,
    Function,
    exported,
    line_of,
)
from torch2engine.core.errors import DynamicAxisError, ExportError, UnsupportedOperatorError
from torch2engine.core.spec import Axis

X = torch.randn(4, 3)


class ErfInv(nn.Module):
    """An operator that torch takes apart before it fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfinv(x * 0.1)


class Distance(nn.Module):
    """Another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x)


class Strange(nn.Module):
    """Three operators without an ONNX form, in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(ErfInv())
        self.second = nn.ModuleDict({"distance": Distance()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second["distance"](self.first(x))
        return torch.searchsorted(y, y)


def test_operators_without_an_onnx_form_are_named_all_at_once() -> None:
    """torch names the first; here each is told with its module's path and the user's line."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(Strange(), X, {"x": BATCH})
    assert [(node.op, node.module, node.source) for node in error.value.nodes] == [
        ("prims.erf_inv", "first.0", line_of(ErfInv, "erfinv")),
        ("aten._cdist_forward", "second.distance", line_of(Distance, "cdist")),
        ("aten.searchsorted.Tensor", "", line_of(Strange, "torch.searchsorted")),
    ]
    head, *lines = str(error.value).splitlines()
    assert head == (
        "torch.onnx: no ONNX form for aten._cdist_forward, aten.searchsorted.Tensor, prims.erf_inv; write these lines "
        "with other PyTorch operators"
    )
    assert lines[0] == (
        f"  prims.erf_inv (erf_inv) in module 'first.0' at {line_of(ErfInv, 'erfinv')}: no ONNX function"
    )


@torch.library.custom_op("torch2engine_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operator of the user's own."""
    return x * 2


@twice.register_fake
def _twice(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_operator_inside_a_branch_is_named_too() -> None:
    """Custom operators and branches are no hiding places."""
    model = Function(lambda x, w: torch.cond(x.sum() > 0, lambda y: twice(y), lambda y: y - 1, (x,)))
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(model, X, {"x": BATCH})
    line = line_of(Function, "self.function(x, self.w)")
    assert [(node.op, node.source) for node in error.value.nodes] == [("torch2engine_tests.twice", line)]


def test_other_failures_of_the_exporter_are_typed() -> None:
    """What the exporter can't do for other reasons is an ExportError with the last things that it said."""
    model = Function(lambda x, w: torch.cat(x.chunk(2), 1))
    with pytest.raises(ExportError) as error:
        exported(model, X, {"x": {0: Axis("n", 2, 4, 8, multiple_of=2)}})
    assert not isinstance(error.value, DynamicAxisError)
    assert re.match(r"torch\.onnx: \w+: .*node_split", str(error.value))
