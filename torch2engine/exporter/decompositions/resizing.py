"""Resizing of images with antialiasing.

Enters: the arguments of one operator. Leaves: its result, by one matrix product for each dimension. Separate because
TensorRT has no antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import larger

__all__ = ["RESIZING"]

_CUBIC = -0.5  # the coefficient that PyTorch uses with antialiasing


def _triangle(x: Tensor) -> Tensor:
    """Weight of the linear filter at a distance."""
    return (1.0 - x.abs()).clamp(min=0.0)


def _cubic(x: Tensor) -> Tensor:
    """Weight of Keys' cubic filter at a distance."""
    x = x.abs()
    near = ((_CUBIC + 2.0) * x - (_CUBIC + 3.0)) * x * x + 1.0
    far = ((x - 5.0) * x + 8.0) * x * _CUBIC - 4.0 * _CUBIC
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def _weights(
    size: int,
    new_size: int,
    align_corners: bool,
    scale: float | None,
    filter_of: Callable[[Tensor], Tensor],
    like: Tensor,
) -> Tensor:
    """[new_size, size]: how much each old element counts in each new one."""
    if align_corners:
        step = (size - 1) / (new_size - 1) if new_size > 1 else 0.0
    else:
        step = 1.0 / scale if scale else size / new_size
    numbers = torch.arange(new_size, dtype=torch.float32, device=like.device)
    # As in PyTorch, pixel centres are half a pixel inside here even where the corners are aligned.
    centres = step * (numbers + 0.5)
    places = torch.arange(size, dtype=torch.float32, device=like.device) + 0.5
    width = larger(step, 1.0)
    weights = filter_of((places - centres.unsqueeze(-1)) / width)
    return (weights / weights.sum(-1, keepdim=True)).to(like.dtype)


def _resize(filter_of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def decomposition(
        x: Tensor,
        output_size: Sequence[int],
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Tensor:
        height, width = x.shape[-2:]
        rows = _weights(height, output_size[0], align_corners, scales_h, filter_of, x)
        columns = _weights(width, output_size[1], align_corners, scales_w, filter_of, x)
        return rows @ (x @ columns.T)

    return decomposition


RESIZING: Mapping[str, Callable[..., Any]] = {
    "_upsample_bilinear2d_aa": _resize(_triangle),
    "_upsample_bicubic2d_aa": _resize(_cubic),
}
