"""What to write instead of a line that makes a number of a size, and that it works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.models import Function, error_of, exported, line_of
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis

X = torch.randn(6, 3)
AXES = {"x": {0: Axis("n", 2, 6, 12)}}


def looped(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Sums in a loop."""
    total = x[0]
    for i in range(1, x.shape[0]):
        total = total + x[i]
    return total


def scaled(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Takes a logarithm of a size."""
    return x * math.log(x.shape[0])


def counted(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Asks a tensor for its length."""
    return x * len(x)


@pytest.mark.parametrize(
    ("function", "line", "fix", "mended"),
    [
        (
            looped,
            "for i in range",
            "a Python loop over an axis has one graph for each size: write it for the whole axis with PyTorch's "
            "operators, or with nn.LSTM, nn.GRU or torch.while_loop where a step needs the one before",
            lambda x, w: x.sum(0),
        ),
        (
            scaled,
            "math.log",
            "compute with a tensor: torch.tensor(size).log() instead of math.log(size)",
            lambda x, w: x * torch.tensor(x.shape[0]).log(),
        ),
        (counted, "len(x)", "leave x.shape[...] as it is there, without len()", lambda x, w: x * x.shape[0]),
    ],
)
def test_line_that_makes_a_number_of_a_size_is_told_with_a_way_out(
    function: Callable[..., Any], line: str, fix: str, mended: Callable[..., Any]
) -> None:
    """The axis, the line and the way out; and the way out is one."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(function), X, AXES)
    assert str(error.value) == (
        "axis 'n': got a model that makes a Python number of its size, so that each size has another "
        "graph; expected sizes that stay "
        f"in tensors and shapes; {fix}; or leave 'n' out of dynamic_axes (at {line_of(function, line)})"
    )
    artifact, examples = exported(Function(mended), X, AXES)
    assert error_of(artifact, examples) < 1e-5
