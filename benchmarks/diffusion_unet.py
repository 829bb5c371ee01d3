"""A U-Net of a diffusion model, in the form of Stable Diffusion's with a tenth of its weights.

Enters: noise, steps of diffusion, and a text's embeddings. Leaves: `DiffusionUnet`. Apart because it is a network that
no library of the GPU machine has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.own_vision import CrossAttention, TimeBlock, timestep_embedding

__all__ = ["TEXT_WIDTH", "DiffusionUnet"]

TEXT_WIDTH = 512
WIDTHS = (128, 256, 512)  # at 32 x 32, 16 x 16 and 8 x 8
HEADS = 8
STEP_WIDTH = 32  # of `TimeBlock`


class _Stage(nn.Module):
    """Two residual blocks, each with attention of pixels to each other and to the text where `has_attention`."""

    def __init__(self, inner: int, outer: int, has_attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TimeBlock(inner, outer), TimeBlock(outer, outer)])
        kinds = (outer, TEXT_WIDTH) * 2 if has_attention else ()
        self.attention = nn.ModuleList([CrossAttention(outer, context, HEADS) for context in kinds])

    def forward(self, x: Tensor, step: Tensor, text: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x, step)
            if len(self.attention):
                x = self.attention[2 * number + 1](self.attention[2 * number](x), text)
        return x


class DiffusionUnet(nn.Module):
    """The noise in latents of 32 x 32, by the step and a text."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.step = nn.Sequential(nn.Linear(STEP_WIDTH, STEP_WIDTH), nn.SiLU(), nn.Linear(STEP_WIDTH, STEP_WIDTH))
        self.first = nn.Conv2d(4, fine, 3, padding=1)
        self.down = nn.ModuleList([_Stage(fine, fine, False), _Stage(fine, middle, True), _Stage(middle, coarse, True)])
        self.shrink = nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1) for width in (fine, middle)])
        self.up = nn.ModuleList([_Stage(coarse + middle, middle, True), _Stage(middle + fine, fine, False)])
        self.last = nn.Sequential(nn.GroupNorm(32, fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1))

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        step = self.step(timestep_embedding(timestep, STEP_WIDTH).to(sample.dtype))
        fine = self.down[0](self.first(sample), step, text)
        middle = self.down[1](self.shrink[0](fine), step, text)
        x = self.down[2](self.shrink[1](middle), step, text)
        for stage, other in zip(self.up, (middle, fine), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = stage(torch.cat((x, other), 1), step, text)
        return self.last(x)
