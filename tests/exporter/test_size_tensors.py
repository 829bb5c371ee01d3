"""Sizes that pass through tensors stay sizes: the graph is right at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.models import Function, answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.core.spec import Axis

AXES = {"x": {1: Axis("n", 3, 8, 12)}}


def through_tensors(x: torch.Tensor, w: Any) -> dict[str, torch.Tensor]:
    """Every way from a size into a tensor, each rule, and ways back into sizes."""
    count = torch.tensor(x.shape[1])
    again = torch.as_tensor(x.shape[1]).to(torch.int32).long().detach().clone()
    half = torch.div(x.shape[1], 2, rounding_mode="trunc")
    third = torch.div(count, 3, rounding_mode="floor")
    middle = torch.min(torch.max(count - 2, torch.tensor(x.shape[1] // 2)), count)
    return {
        "without last": x[:, : count - 1] * 2,
        "from the end": x[:, 1 - count :] * 2,
        "reversed": x[:, 3 - count : -1] * 2,
        "half": x[:, :half] * 2,
        "third": torch.zeros(third + 1, 2) + x[0, 0, 0],
        "grouped": x[:, : (again // 3) * 3].reshape(2, again // 3, 9) * 2,
        "rest": x[:, again % 3 :] * 2,
        "least": x[:, : torch.minimum(count, half + 1)] * 2,
        "middle": x[:, :middle] * 2,
        "twice": torch.arange(2 * count + 1) + x[0, 0, 0],
        "opposite": x[:, : 2 - (-count) - 3] * 2,
    }


def test_size_that_passed_through_a_tensor_is_right_at_every_size() -> None:
    """Each size of the axis gives shapes and values as PyTorch's."""
    model = Function(through_tensors)
    artifact, _ = exported(model, torch.randn(2, 8, 3), AXES)
    for size in range(3, 13):
        x = torch.randn(2, size, 3)
        expected = model(x)
        answers = answer(artifact, ParityCase("", (x,), {}))
        for (name, right), found in zip(expected.items(), answers.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), right, msg=lambda text, name=name: f"{name}: {text}")


def written(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The tensor changes after it was made from a size."""
    count = torch.tensor(x.shape[1])
    count.sub_(1)
    return x[:, :count] * 2


def valued(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The number has a part that is no size."""
    return x[:, : torch.tensor(x.shape[1]) - (x > 9).sum()] * 2


@pytest.mark.parametrize("function", [written, valued])
def test_number_that_is_no_expression_of_sizes_is_refused(function: Any) -> None:
    """A tensor that was written into, or that depends on values, is never taken for the size that it began with."""
    with pytest.raises(UnsupportedOperatorError) as error:
        exported(Function(function), torch.randn(2, 8, 3), AXES)
    assert "a size that depends on values" in str(error.value)
