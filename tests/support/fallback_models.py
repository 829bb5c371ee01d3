"""Models with places that no engine takes, and the lines of these places.

Enters: nothing. Leaves: modules, and "FILE:LINE" of a text in this file. Separate because torch.compile's backend and
the fallback of deploy() are tested on the same models, on the CPU and on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["FourObstacles", "Pyramid", "ThreeObstacles", "line_with"]


def well_posed(rows: torch.Tensor) -> torch.Tensor:
    """A square matrix of rows [B, N], far from singular, so that rounding alone does not decide its factors."""
    return rows.mT @ rows + torch.eye(rows.shape[1], device=rows.device)


class FourObstacles(nn.Module):
    """nonzero, a branch on a value, an operator that ONNX lacks, and a boolean index, with work for engines between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, H, W] → rows [N, 5], and where the first channel is positive."""
        features = self.norm(self.conv(x)).relu()
        places = torch.nonzero(features[:, 0, 0])
        rows = features.mean((2, 3)).exp().neg()
        if rows.sum() > 0:
            rows = rows * 2
        rows = self.hidden(rows).relu() + 1
        turn = torch.linalg.qr(well_posed(rows)).Q.abs()
        rows = self.head(rows @ turn).sigmoid() * 3
        rows = rows[rows[:, 0] > 1.5]
        return self.head(rows).relu() + 2, places


class ThreeObstacles(FourObstacles):
    """The same without the branch, so that it can be exported."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, H, W] → rows [N, 5], and where the first channel is positive."""
        features = self.norm(self.conv(x)).relu()
        found = torch.nonzero(features[:, 0, 0])
        rows = self.hidden(features.mean((2, 3)).exp().neg()).relu() + 1
        basis = torch.linalg.qr(well_posed(rows)).Q.abs()
        scores = self.head(rows @ basis).sigmoid() * 3
        scores = scores[scores[:, 0] > 1.5]
        return self.head(scores).relu() + 2, found


@torch.library.custom_op("torch2engine_test::raise_by", mutates_args={"x"})
def raise_by(x: torch.Tensor, amount: float) -> None:
    """An operator that no engine knows; it writes into its argument."""
    x.add_(amount)


@torch.library.custom_op("torch2engine_test::split", mutates_args=())
def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An operator that no engine knows, with two results."""
    return x.clamp(min=0), x.clamp(max=0)


@split.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


class Pyramid(nn.Module):
    """Obstacles in a submodule, around features whose sizes are halves of the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.lower = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.mixer = Mixer()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Images [B, 3, H, W] and labels [B] → maps, rows and counts."""
        features = self.down(images).relu()
        low = self.mixer(self.lower(features).relu() * 2)
        high = nn.functional.interpolate(low, size=features.shape[-2:]) + features
        maps = self.head(high).sigmoid() * 2
        found = labels.unique(return_counts=True)
        return {"maps": maps, "rows": (maps[:, :, 0, 0].exp() + 1,), "labels": found}


class Mixer(nn.Module):
    """Three operators that no engine takes: one writes, one has two results, one computes complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, 8, H, W] → features."""
        raise_by(x, 0.5)
        x = self.linear(x).tanh() * 3
        positive, negative = split(x)
        x = (positive - negative + 1).sqrt() + self.linear(negative)
        spectrum = torch.fft.rfft(x.mean((2, 3)))
        return x * torch.view_as_real(spectrum).square().sum((1, 2))[:, None, None, None].sqrt()


def line_with(text: str) -> str:
    """ "FILE:LINE" of the only line of this file that holds a text, this function left out."""
    lines = Path(__file__).read_text(encoding="utf-8").partition("def line_with")[0].splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return f"{__file__}:{number}"
