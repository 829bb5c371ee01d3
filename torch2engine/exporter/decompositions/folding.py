"""`fold`: patches back to images.

Enters: the arguments of `col2im`. Leaves: its result, by a transposed convolution. Separate because TensorRT has no
Col2Im.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FOLDING"]


def col2im(
    patches: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Add up overlapping patches: [N, C * kernel, L] to [N, C, *output_size], or both without N.

    Each channel's transposed convolution has one kernel for each element of a patch, with a single 1 in it.
    """
    if patches.dim() == 2:
        return col2im(patches.unsqueeze(0), output_size, kernel_size, dilation, padding, stride).squeeze(0)
    area = kernel_size[0] * kernel_size[1]
    channels = patches.shape[1] // area
    counts: list[int] = []
    reached: list[int] = []
    for size, kernel, step, edge, apart in zip(output_size, kernel_size, stride, padding, dilation, strict=True):
        span = apart * (kernel - 1) + 1
        count = (size + 2 * edge - span) // step + 1
        counts.append(count)
        reached.append((count - 1) * step + span)
    images = patches.reshape(-1, patches.shape[1], *counts)
    unit = torch.eye(area, dtype=patches.dtype, device=patches.device).reshape(area, 1, *kernel_size)
    weight = unit.repeat(channels, 1, 1, 1)
    whole = functional.conv_transpose2d(images, weight, stride=stride, dilation=dilation, groups=channels)
    # The padded edges are cut off, and rows that no patch reaches are zeros.
    missing = [size + 2 * edge - found for size, edge, found in zip(output_size, padding, reached, strict=True)]
    whole = functional.pad(whole, (0, missing[1], 0, missing[0]))
    return whole[..., padding[0] : padding[0] + output_size[0], padding[1] : padding[1] + output_size[1]]


FOLDING: Mapping[str, Callable[..., Any]] = {"col2im": col2im}
