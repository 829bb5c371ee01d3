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


class Spectrum(nn.Module):
    """A filter of the lowest frequencies, as in a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        spectrum = torch.fft.rfft(x, dim=-1)
        kept = torch.zeros(x.shape[0], 4, spectrum.shape[-1], dtype=torch.cfloat)
        kept[:, :, :5] = torch.einsum("bik,iok->bok", spectrum[:, :, :5], self.weight)
        kept[:, 3] = spectrum[:, 0].flip(-1).roll(1, -1)
        return {
            "filtered": torch.fft.irfft(kept, n=x.shape[-1], dim=-1),
            "sum": torch.view_as_real(torch.einsum("bik->bi", spectrum)),
        }


def test_einsum_of_complex_numbers_is_right() -> None:
    """A product and a sum of complex numbers, in a spectrum that is written in part."""
    artifact, cases = exported(Spectrum(), torch.randn(2, 3, 16), {"x": {0: Axis("b", 1, 2, 4)}})
    assert error_of(artifact, cases) < 1e-4
