"""Transposed convolutions whose elements lie apart, as ones whose kernel has zeros between.

Enters: the arguments of one operator. Leaves: its result. Separate because TensorRT-RTX 1.6 has no transposed
convolution with a stride and a dilation at once, and tells no node when it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["TRANSPOSED_CONVOLUTIONS"]


def _transposed(rank: int, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def decomposition(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        dilation: Sequence[int] = (1,),
    ) -> Tensor:
        steps = list(dilation) * rank if len(dilation) == 1 else list(dilation)
        if all(step == 1 for step in steps) or all(step == 1 for step in stride):
            return NotImplemented
        for number, step in enumerate(steps):
            weight = _spread(weight, number - rank, step)
        return function(x, weight, bias, stride, padding, output_padding, groups)

    return decomposition


def _spread(weight: Tensor, dim: int, step: int) -> Tensor:
    """The weight with `step - 1` zeros between its elements along a dimension."""
    if step == 1:
        return weight
    size = weight.shape[dim]
    last = weight.movedim(dim, -1).unsqueeze(-1)
    zeros = torch.zeros_like(last).expand(*last.shape[:-1], step - 1)
    spread = torch.cat((last, zeros), -1).flatten(-2).narrow(-1, 0, (size - 1) * step + 1)
    return spread.movedim(-1, dim)


TRANSPOSED_CONVOLUTIONS: Mapping[str, Callable[..., Any]] = {
    "conv_transpose1d": _transposed(1, torch.conv_transpose1d),
    "conv_transpose2d.input": _transposed(2, torch.conv_transpose2d),
    "conv_transpose3d.input": _transposed(3, torch.conv_transpose3d),
}
