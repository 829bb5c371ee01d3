"""Complex numbers inside a model: PyTorch's results, as pairs of real numbers."""

from __future__ import annotations

import torch
from torch import nn

from tests.support.models import error_of, exported
from torch2engine.core.spec import Axis


class Rotary(nn.Module):
    """Rotary positions by a complex buffer, and the other operators of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(9, 2), torch.arange(18.0).reshape(9, 2)))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.view_as_complex(x.reshape(*x.shape[:-1], 2, 2))
        turns = self.turns[: x.shape[1]].unsqueeze(0).unsqueeze(-2)
        turned = y * turns
        made = torch.polar(x.abs() + 1.0, x)
        return {
            "rotated": torch.view_as_real(turned).flatten(3),
            "divided": torch.view_as_real(y.conj() / turns.expand(2, -1, 2, -1)),
            "exponential": torch.view_as_real(torch.exp(y * 0.1)),
            "selected": turned[:, 1].real,
            "gathered": turned.index_select(2, torch.tensor([1])).imag,
            "polar": torch.view_as_real(made),
            "size": made.abs(),
        }


def test_complex_numbers_follow_a_dynamic_length() -> None:
    """A complex buffer is cut to the length, and turns what is there."""
    artifact, cases = exported(Rotary(), torch.randn(2, 6, 2, 4), {"x": {1: Axis("n", 2, 6, 9)}})
    assert error_of(artifact, cases) < 1e-5
