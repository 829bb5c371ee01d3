"""`len(tensor)` in a model's code: it follows a dynamic axis, and Python's `len` comes back."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis

AXES = {"x": {0: Axis("n", 1, 3, 6)}}


def _count(rows: torch.Tensor) -> Any:
    return len(rows)


class Lengths(nn.Module):
    """Takes the number of rows by `len`, in forward and in a function of its file; lists have theirs as ever."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != x.shape[0] or len([x, x]) != 2:
            raise ValueError("rows")
        steps = torch.arange(len(x), dtype=x.dtype)
        return x.reshape(_count(x), -1).mean(1) + steps * len(x.shape)


class Loop(nn.Module):
    """Counts to the number of rows in Python."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[i] * i for i in range(len(x))])


def test_len_of_a_tensor_follows_its_dynamic_axis() -> None:
    """One graph answers every number of rows, and nothing of the export stays in the model's file."""
    model = Lengths().eval()
    artifact, _ = exported(model, torch.randn(3, 2, 2), AXES)
    for rows in range(1, 7):
        x = torch.randn(rows, 2, 2)
        (found,) = answer(artifact, ParityCase("", (x,), {})).values()
        torch.testing.assert_close(torch.from_numpy(found), model(x))
    assert "len" not in vars(sys.modules[__name__])


def test_python_loop_over_len_is_refused_at_its_line() -> None:
    """A graph has one number of steps; a refusal leaves nothing in the model's file either."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Loop().eval(), torch.randn(3, 2, 2), AXES)
    assert "a Python loop over an axis has one graph for each size" in str(error.value)
    assert error.value.source.rpartition(":")[0].endswith("test_tensor_lengths.py")
    assert "len" not in vars(sys.modules[__name__])
