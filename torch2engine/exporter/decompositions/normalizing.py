"""Normalisation of tensors that have no dimension besides batch and channels.

Enters: the arguments of one operator. Leaves: its result by another form of the same operator. Separate because ONNX
has the operator for such tensors, and TensorRT wants at least three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

__all__ = ["NORMALIZING"]


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`group_norm` of [batch, channels]."""
    if x.dim() != 2:
        return NotImplemented
    return functional.group_norm(x.unsqueeze(-1), num_groups, weight, bias, eps).squeeze(-1)


NORMALIZING: Mapping[str, Callable[..., Any]] = {"group_norm": _group_norm}
