"""Numbers in tensors that forward makes from plain numbers: branches on them and sizes of them are traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.models import error_of, exported, graph_of
from torch2engine.core.errors import ExportError, UnsupportedOperatorError
from torch2engine.core.spec import Axis

BATCH = {"x": {0: Axis("batch", 1, 2, 5)}}


class _Positions(nn.Module):
    """Relative positions between a sequence and its pooled half, as of a Funnel Transformer."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = torch.arange(0, 6, dtype=torch.int64, device=x.device).to(x.dtype)
        pooled = torch.cat([positions.new_tensor([-1]), positions[1:-1][::2]], 0)
        farthest = pooled[0] - positions[0] + 2 * len(pooled) * 2
        nearest = pooled[0] - positions[-1]
        relative = torch.arange(farthest, nearest - 1, -2, dtype=torch.long, device=x.device)
        return {
            "sum": x + relative.sum(),
            "window": x[:, : relative.max() - 6] * relative[:5],
            "size": torch.zeros(relative.min() + 9) + x[0, 0],
            "branch": x * 2 if (relative > 3).any() else x,
            "list": x[:, [place for place in relative.tolist() if 0 < place < 5]],
            "loop": x + sum(int(place) for place in relative),
        }


class _Written(nn.Module):
    """A tensor of zeros, which holds the input after a write."""

    def __init__(self, through_view: bool) -> None:
        super().__init__()
        self.through_view = through_view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(3)
        target = total[1:] if self.through_view else total
        target += x.sum()
        return x * 2 if total.sum() > 0 else x


class _OfInput(nn.Module):
    """A size that the input's values decide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(torch.arange(3).sum() + x.sum().long()) + x.sum()


class _OfSize(nn.Module):
    """Positions of a dynamic length: their last number is a size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(x.shape[0])[-1]


def test_numbers_of_known_tensors_are_traced_as_numbers() -> None:
    """As ends of a range, bounds of a slice, sizes, conditions, lists and numbers of a loop."""
    artifact, cases = exported(_Positions(), torch.randn(2, 9), BATCH)
    assert error_of(artifact, cases) == 0
    assert "Range" not in {node.op_type for node in graph_of(artifact).node}


@pytest.mark.parametrize("through_view", [False, True])
def test_written_tensor_is_not_known_any_more(through_view: bool) -> None:
    """A branch on it depends on values again."""
    with pytest.raises(ExportError, match="depends on a tensor's values"):
        exported(_Written(through_view), torch.randn(2, 3), BATCH)


def test_size_from_values_of_an_input_is_refused() -> None:
    """A known summand does not make it known."""
    with pytest.raises((ExportError, UnsupportedOperatorError), match="depends on"):
        exported(_OfInput(), torch.randn(2, 3), BATCH)


def test_positions_of_a_dynamic_length_follow_it() -> None:
    """The last one is one less than the size, at every size."""
    artifact, cases = exported(_OfSize(), torch.randn(3, 2), {"x": {0: Axis("n", 2, 3, 7)}})
    assert error_of(artifact, cases) == 0
