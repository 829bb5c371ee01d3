"""Fourier transforms: PyTorch's, for even and odd sizes, every scale, and several dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.models import BATCH, error_of, exported
from torch2engine.exporter.decompositions.fourier import FOURIER

ATEN = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("size", [1, 4, 5, 8])
@pytest.mark.parametrize("normalization", [0, 1, 2])
def test_transforms_are_pytorchs(size: int, normalization: int) -> None:
    """Of real and complex signals, forth and back."""
    real = torch.randn(2, size, 3, generator=GENERATOR)
    signal = torch.randn(2, size, 3, dtype=torch.complex64, generator=GENERATOR)
    calls = [
        ("_fft_r2c", (real, [1], normalization, True)),
        ("_fft_r2c", (real, [1, 2], normalization, False)),
        ("_fft_c2c", (signal, [1, 0], normalization, True)),
        ("_fft_c2c", (signal, [1], normalization, False)),
        ("_fft_c2r", (signal, [1], normalization, 2 * size - 1)),
        ("_fft_c2r", (signal, [0, 1], normalization, max(2 * size - 2, 1))),
    ]
    for name, arguments in calls:
        torch.testing.assert_close(FOURIER[name](*arguments), getattr(ATEN, name)(*arguments))


class _Filter(nn.Module):
    """A filter over frequencies, as in Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * self.weight, s=(8, 8), norm="ortho")


def test_filter_is_exported_for_a_dynamic_batch() -> None:
    """Spectra may be multiplied in between."""
    artifact, cases = exported(_Filter(), torch.randn(4, 8, 8), {"x": BATCH})
    assert error_of(artifact, cases) < 1e-5
