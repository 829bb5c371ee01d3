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

X = torch.randn(4, 3)


class Bessel(nn.Module):
    """An operator that torch takes apart before it fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x * 0.1)


class Gamma(nn.Module):
    """Another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.gammainc(x.abs(), x.abs())


class Strange(nn.Module):
    """Three operators without an ONNX form, in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Bessel())
        self.second = nn.ModuleDict({"gamma": Gamma()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second["gamma"](self.first(x))
        return torch.nextafter(y, y)


def test_operators_without_an_onnx_form_are_named_all_at_once() -> None:
    """torch names the first; here each is told with its module's path and the user's line."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(Strange(), X, {"x": BATCH})
    assert [(node.op, node.module, node.source) for node in error.value.nodes] == [
        ("prims.bessel_j0", "first.0", line_of(Bessel, "bessel_j0")),
        ("prims.igamma", "second.gamma", line_of(Gamma, "gammainc")),
        ("prims.nextafter", "", line_of(Strange, "torch.nextafter")),
    ]
    head, *lines = str(error.value).splitlines()
    assert head == (
        "torch.onnx: got no ONNX form for prims.bessel_j0, prims.igamma, prims.nextafter; expected operators "
        "that have one; write these lines with other PyTorch operators"
    )
    assert lines[0] == (
        f"  prims.bessel_j0 (bessel_j0) in module 'first.0' at {line_of(Bessel, 'bessel_j0')}: no ONNX function"
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


class PowersOfTwo(nn.Module):
    """Its buffer has a type that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3).to(torch.float8_e8m0fnu))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.float()


def test_other_failures_of_the_exporter_are_typed() -> None:
    """What the exporter can't do for other reasons is an ExportError with the last things that it said."""
    with pytest.raises(ExportError) as error:
        exported(PowersOfTwo(), X, {"x": BATCH})
    assert not isinstance(error.value, DynamicAxisError)
    assert re.match(
        r'torch\.onnx: got a failure on this program: "\w+: .*KeyError: torch.float8_e8m0fnu', str(error.value)
    )


def test_operator_that_torch_can_not_trace_is_named() -> None:
    """torch.export's advice is no part of the operator's name."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(Function(lambda x, w: torch.histogram(x, 3)[0]), X)
    assert [node.op.partition(".bin_ct")[0] for node in error.value.nodes] == ["aten.histogram"]
    assert "calling torch.export" not in str(error.value)
