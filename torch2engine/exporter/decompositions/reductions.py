"""Reductions, softmax and running places in the forms that torch.onnx or TensorRT lack.

Enters: the arguments of one operator. Leaves: its result by another form of the same operator. Separate because
TensorRT's softmax and ArgMax need two dimensions, and torch.onnx forgets that a reduction may name none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["REDUCTIONS"]


def _extreme(reduction: Callable[..., Tensor], of_bools: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """amax or amin of bools, of a number, or of all elements, where no dimension is named."""

    def decomposition(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
        if x.dim() == 0:
            return x.clone()
        dims = list(dim) or list(range(x.dim()))
        if x.dtype == torch.bool:  # TensorRT reduces no bools
            return of_bools(x, dims, keepdim)
        return NotImplemented if dim else reduction(x, dims, keepdim)

    return decomposition


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim())) if dim is None else [dim]
    if x.dim() == 0:
        return x.clone(), x.clone()
    return torch.amin(x, dims, keepdim), torch.amax(x, dims, keepdim)


def _place_of(reduction: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """argmax or argmin of a tensor of one dimension, or of a flattened one."""

    def decomposition(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if x.dim() == 0:
            return torch.zeros_like(x, dtype=torch.int64)
        if dim is not None and x.dim() > 1:
            return NotImplemented
        place = reduction(x.reshape(1, -1), 1)
        return place.reshape([1] * x.dim()) if keepdim else place.squeeze(0)

    return decomposition


def _softmax_of(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """softmax or log_softmax of a tensor of one dimension."""

    def decomposition(x: Tensor, dim: int, last: Any = None) -> Tensor:
        if x.dim() != 1:
            return NotImplemented
        # The last argument is a dtype, or says whether a half result shall be in float32.
        dtype = last if isinstance(last, torch.dtype) else torch.float32 if last else None
        return softmax(x.unsqueeze(0), 1, dtype=dtype).squeeze(0)

    return decomposition


def _mean_of_number(x: Tensor, *options: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`mean` of a tensor without dimensions, which TensorRT refuses."""
    if x.dim():
        return NotImplemented
    return x.clone() if dtype is None else x.to(dtype)


def _norm_of_number(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """`linalg_vector_norm` of a tensor without dimensions, which TensorRT refuses."""
    if x.dim():
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    return (x != 0).to(x.dtype) if ord == 0 else x.abs()


def _mse_loss_of_number(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """`mse_loss` of tensors without dimensions, which TensorRT refuses."""
    return NotImplemented if x.dim() or target.dim() else (x - target) ** 2


REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "amax": _extreme(torch.amax, torch.any),
    "amin": _extreme(torch.amin, torch.all),
    "aminmax": _aminmax,
    "mean": _mean_of_number,
    "mean.dim": _mean_of_number,
    "linalg_vector_norm": _norm_of_number,
    "mse_loss": _mse_loss_of_number,
    "argmax": _place_of(torch.argmax),
    "argmin": _place_of(torch.argmin),
    "softmax.int": _softmax_of(torch.softmax),
    "_softmax": _softmax_of(torch.softmax),
    "log_softmax.int": _softmax_of(torch.log_softmax),
    "_log_softmax": _softmax_of(torch.log_softmax),
}
