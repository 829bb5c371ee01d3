"""Splits whose parts follow a dynamic axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.models import error_of, exported, graph_of
from torch2engine.core.spec import Axis


class Applied(nn.Module):
    """x -> what `function` makes of it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: torch.cat(x.split([x.shape[1] // 2, x.shape[1] - x.shape[1] // 2], 1)[::-1], 1),
        lambda x: torch.cat(x.split(1, 0)[::-1], 0),
    ],
    ids=["chunk", "sizes", "static"],
)
def test_parts_are_right_and_no_sequence_is_left(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """No TensorRT has sequences: parts are slices, or ONNX's Split."""
    artifact, examples = exported(Applied(function), torch.randn(2, 6), {"x": {1: Axis("n", 2, 6, 11)}})
    assert not [node.op_type for node in graph_of(artifact).node if "Sequence" in node.op_type]
    assert error_of(artifact, examples) == 0
