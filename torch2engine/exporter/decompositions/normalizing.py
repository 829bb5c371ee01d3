"""Normalisations in the forms that TensorRT has, with all that PyTorch's own operators return.

Enters: the arguments of one operator. Leaves: all its results. Separate because TensorRT wants at least three
dimensions, and its LayerNormalization returns the result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torch2engine.capture.torch_types import CAST_DTYPES

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


def _native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`native_layer_norm`: in float32 for the half types."""
    wide = x.to(torch.float32) if x.dtype in CAST_DTYPES else x
    dims = list(range(-len(normalized_shape), 0))
    mean = wide.mean(dims, keepdim=True)
    centered = wide - mean
    scale = torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)
    result = centered * scale
    result = result if weight is None else result * weight
    result = result if bias is None else result + bias
    return result.to(x.dtype), mean, scale


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """`_native_batch_norm_legit_functional` outside of training: it leaves the running statistics as they are."""
    if training:
        return NotImplemented
    operator: Any = torch.ops.aten._native_batch_norm_legit_no_training
    results = operator(x, weight, bias, running_mean, running_var, momentum, eps)
    return (*results, running_mean.clone(), running_var.clone())


NORMALIZING: Mapping[str, Callable[..., Any]] = {
    "group_norm": _group_norm,
    "native_layer_norm": _native_layer_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
}
