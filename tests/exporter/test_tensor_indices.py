"""A 0-d integer tensor is an index of the graph, wherever it stands between brackets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.models import answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import ExportError, UnsupportedOperatorError
from torch2engine.core.spec import Axis

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
AXES = {"x": {0: Axis("n", 6, 8, 12)}}


class Applied(nn.Module):
    """Calls a function of a tensor and an index."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return self.function(x, i)


def assign(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    x = x * 1
    x[i] = 3.0
    return x


def add_in_place(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    x = x * 1
    x[i] += 1
    return x


FUNCTIONS: dict[str, Function] = {
    "row": lambda x, i: x[i] * 2,
    "row counted from the end": lambda x, i: x[-1 - i] * 2,
    "column": lambda x, i: x[:, i] * 2,
    "behind an ellipsis": lambda x, i: x[..., i, None] * 2,
    "element": lambda x, i: x[i, i - 1] * 2,
    "beside rows": lambda x, i: x[[0, 1, 4], i] * 2,
    "beside rows and a new dimension": lambda x, i: x[None, :, :, None][:, x[:, 0].argsort(), i] * 2,
    "apart from rows": lambda x, i: x[:, :, None, None].expand(-1, -1, 2, 5)[:, [0, 2], :, i] * 2,
    "assignment": assign,
    "addition in place": add_in_place,
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_index_of_the_graph_is_right_for_every_value(name: str, dtype: torch.dtype) -> None:
    """The sample's value is not baked in, at another size of the indexed tensor too."""
    function = FUNCTIONS[name]
    artifact, _ = exported(Applied(function), (torch.randn(8, 4), torch.tensor(3, dtype=dtype)), AXES)
    for size, value in ((8, 3), (11, 0), (6, 2), (6, -1)):
        x = torch.randn(size, 4)
        i = torch.tensor(value, dtype=dtype)
        found = answer(artifact, ParityCase("", (x, i), {}))
        assert torch.equal(torch.from_numpy(found["output"]), function(x, i))


@pytest.mark.parametrize("write", [lambda row: row.add_(1), lambda row: row.view(2, 2).fill_(1)], ids=["row", "view"])
def test_write_into_a_row_that_pytorch_shares_is_refused(write: Callable[[torch.Tensor], object]) -> None:
    """The write would be lost, because the graph's row is a copy."""

    def write_into_row(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        x = x * 1
        write(x[i])
        return x

    with pytest.raises(ExportError, match=r"got a write into x\[i\].*write x\[i\] = value") as caught:
        exported(Applied(write_into_row), (torch.randn(8, 4), torch.tensor(3)), AXES)
    assert caught.value.subject == "torch.export"


def test_number_of_a_tensor_chooses_a_row() -> None:
    """`.item()` as an index needs no size, so it isn't refused as one."""
    artifact, _ = exported(Applied(lambda x, i: x.select(0, i.item()) * 2), (torch.randn(8, 4), torch.tensor(3)), AXES)
    x = torch.randn(9, 4)
    found = answer(artifact, ParityCase("", (x, torch.tensor(5)), {}))
    assert torch.equal(torch.from_numpy(found["output"]), x[5] * 2)


def test_number_of_a_tensor_as_a_size_is_refused() -> None:
    """A slice up to a value has a size that no shape decides."""
    with pytest.raises((UnsupportedOperatorError, ExportError), match="that depends on "):
        exported(Applied(lambda x, i: x[:, :i] * 2), (torch.randn(8, 4), torch.tensor(3)), AXES)
