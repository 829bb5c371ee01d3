"""Sizes that pass through tensors stay sizes: the graph is right at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.models import Function, answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import ExportError, UnsupportedOperatorError
from torch2engine.core.spec import Axis
from torch2engine.exporter.sizes.size_tensors import _quotient

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


class Padded(torch.nn.Module):
    """A padding that follows from the length by numbers in tensors, as of convolutions for sound."""

    stride: torch.Tensor
    width: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stride", torch.tensor(3))
        self.register_buffer("width", torch.tensor(5), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        count = torch.tensor(x.shape[1])
        frames = (x.shape[1] - self.width + 2) / self.stride + 1
        whole = torch.ceil(frames).to(torch.int64) - 1
        if max(self.width, whole) > 6 or count / self.stride == 7:
            raise ValueError("longer than any size of the axis")
        missing = whole * self.stride + self.width - 2 - x.shape[1]
        down = torch.floor((count + 1) / self.stride * 2 - 1).long()
        return {
            "padded": torch.nn.functional.pad(x, (0, 0, 1, missing + 3)) * 2,
            "down": x[:, :down] * 2,
            "truncated": x[:, : (count / self.stride).int()] * 2,
            "buffer alone": x[:, self.stride - 2 :] * 2,
        }


def test_ratio_of_sizes_and_integer_buffers_is_right_at_every_size() -> None:
    """Each size of the axis gives shapes and values as PyTorch's, however the ratio is rounded."""
    model = Padded().eval()
    artifact, _ = exported(model, torch.randn(2, 8, 3), AXES)
    for size in range(3, 13):
        x = torch.randn(2, size, 3)
        answers = answer(artifact, ParityCase("", (x,), {}))
        for (name, right), found in zip(model(x).items(), answers.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), right, msg=lambda text, name=name: f"{name}: {text}")


def written(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The tensor changes after it was made from a size."""
    count = torch.tensor(x.shape[1])
    count.sub_(1)
    return x[:, :count] * 2


def valued(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The number has a part that is no size."""
    return x[:, : torch.tensor(x.shape[1]) - (x > 9).sum()] * 2


def written_ratio(x: torch.Tensor, w: Any) -> torch.Tensor:
    """The tensor changes between a division and the rounding."""
    share = torch.tensor(x.shape[1]) / 2
    share.add_(1)
    return x[:, : share.long()] * 2


@pytest.mark.parametrize("function", [written, valued, written_ratio])
def test_number_that_is_no_expression_of_sizes_is_refused(function: Any) -> None:
    """A tensor that was written into, or that depends on values, is never taken for the size that it began with."""
    # torch 2.11 refuses such a slice while it traces; torch 2.13 gives it a size of its own.
    with pytest.raises((UnsupportedOperatorError, ExportError), match=r"depends on (a tensor's )?values"):
        exported(Function(function), torch.randn(2, 8, 3), AXES)


@pytest.mark.parametrize(
    ("dividend", "divisor", "mode", "wanted"),
    [
        (7, 2, "trunc", 3),
        (0, 2, "trunc", 0),
        (-7, 2, "trunc", None),
        (7, -2, "trunc", None),
        (-7, 2, "floor", -4),
    ],
)
def test_rounding_towards_zero_is_followed_where_no_number_is_negative(
    dividend: int, divisor: int, mode: str, wanted: int | None
) -> None:
    """Python's own division rounds down, which is another number below zero."""
    assert _quotient(dividend, divisor, mode) == wanted
