"""Axes that follow from others: written as expressions, or found by the export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.build_here import build_here
from tests.support.models import error_of, exported, graph_of, line_of
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import DynamicAxisError, ShapeError
from torch2engine.core.spec import Axis, Profile
from torch2engine.deploy import deploy

PAST = Axis("past", 2, 4, 8)
NEW = Axis("new", 1, 2, 4)


class Cached(nn.Module):
    """What a decoder with a cache does to lengths."""

    def forward(self, past: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat((past, x), 1) * mask


SAMPLE = (torch.randn(1, 4), torch.randn(1, 2), torch.ones(1, 6))


def axes(total: Any) -> dict[str, dict[int, Any]]:
    """The axes of the three inputs."""
    return {"past": {1: PAST}, "x": {1: NEW}, "mask": {1: total}}


@pytest.mark.parametrize("total", ["past + new", "new+past", Axis("total", 3, 6, 12), Axis("total", 1, 6, 20)])
def test_sum_of_axes_is_one_size_that_follows(total: Any) -> None:
    """Written or found, the mask's length is an expression, and every corner is right."""
    artifact, _ = exported(Cached(), SAMPLE, axes(total))
    assert artifact.signature.axes == (PAST, NEW)
    assert artifact.signature.inputs[2].shape in [(1, "past + new"), (1, "new + past")]
    assert artifact.profiles == (Profile({"past": (2, 4, 8), "new": (1, 2, 4)}),)
    (mask,) = [value for value in graph_of(artifact).input if value.name == "mask"]
    assert mask.type.tensor_type.shape.dim[1].dim_param == artifact.signature.inputs[2].shape[1]


def test_deployed_module_checks_the_size_that_follows() -> None:
    """An axis that export found to be a sum is compared at every corner and checked in every call."""
    module = deploy(Cached(), SAMPLE, axes(Axis("total", 3, 6, 12)), runtime="onnxruntime", cache=False)
    past, x, mask = torch.randn(1, 3), torch.randn(1, 4), torch.rand(1, 7)
    assert torch.equal(module(past, x, mask), Cached()(past, x, mask))
    with pytest.raises(ShapeError) as error:
        module(past, x, torch.rand(1, 8))
    assert error.value.got == "dimension 1 = 8, but 'new + past' is 7 with past = 3, new = 4"


def test_engine_with_a_size_that_follows_builds() -> None:
    """TensorRT-RTX takes the profile's corners of an input whose length is a sum."""
    artifact, examples = exported(Cached(), SAMPLE, axes("past + new"))
    assert error_of(artifact, examples) == 0
    engine = build_here(artifact, config=BuildConfig(flavour="tensorrt_rtx"), cache=False)
    assert engine.signature == artifact.signature


def test_multiple_of_an_axis_is_found() -> None:
    """Two rows of one input for each row of the other."""

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat((x, x)) + y

    sample = (torch.randn(3, 2), torch.randn(6, 2))
    artifact, _ = exported(Doubled(), sample, {"x": {0: Axis("n", 1, 3, 5)}, "y": {0: Axis("m", 2, 6, 10)}})
    assert [spec.shape for spec in artifact.signature.inputs] == [("n", 2), ("2 * n", 2)]


def test_range_that_is_too_narrow_for_its_sum_is_refused() -> None:
    """The error says what to write, and that works."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Cached(), SAMPLE, axes(Axis("total", 3, 6, 10)))
    assert str(error.value) == (
        "axis 'total': got a model that makes it new + past, which is 3..12; expected 3..10, the "
        "range of its own; write 'new + past' "
        "instead of Axis('total', ...) in dynamic_axes, and narrow the others "
        f"(at {line_of(Cached, 'return torch.cat')})"
    )
    artifact, _ = exported(Cached(), SAMPLE, axes("new + past"))
    assert artifact.signature.axes == (PAST, NEW)


@pytest.mark.parametrize(
    ("total", "got"),
    [
        ("past - new", "'past - new' is no size: write a sum of axes"),
        ("past + other", "'past + other', and no input has an axis 'other'"),
        ("2*past", "dimension 1 = 6 in sample_input"),
        ("past + new - 9", "dimension 1 = 6 in sample_input"),
    ],
)
def test_expression_that_can_not_be_is_refused(total: str, got: str) -> None:
    """Before anything is exported, with what is valid."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Cached(), SAMPLE, axes(total))
    assert error.value.got.startswith(got)


def test_expression_over_axes_of_one_size_is_a_number() -> None:
    """An axis that does not vary makes the sum vary with the other alone."""
    artifact, examples = exported(
        Cached(), SAMPLE, {"past": {1: PAST}, "x": {1: Axis("new", 2, 2, 2)}, "mask": {1: "past + new"}}
    )
    assert [spec.shape for spec in artifact.signature.inputs] == [(1, "past"), (1, 2), (1, "past + 2")]
    assert np.isclose(error_of(artifact, examples), 0)
