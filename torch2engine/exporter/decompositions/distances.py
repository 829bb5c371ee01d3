"""Distances between rows.

Enters: the arguments of one operator. Leaves: its result. Separate because ONNX has no distance of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import lowest, product_is_at_most

__all__ = ["DISTANCES", "cdist"]

_BY_PRODUCT_ABOVE = 25  # rows from which PyTorch computes Euclidean distances by a matrix product
_ALWAYS_BY_PRODUCT = 1
_NEVER_BY_PRODUCT = 2
_MOST_COMPARISONS = 2**24


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Compute the p-norm distance of every row of x1 [..., P, M] from every row of x2 [..., R, M]: [..., P, R].

    Euclidean distances of many rows come from a matrix product, as in PyTorch; others need memory for P * R * M values.
    """
    if p == 2.0 and _is_by_product(x1, x2, compute_mode or 0):
        return _euclidean_by_product(x1, x2)
    return _norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _is_by_product(x1: Tensor, x2: Tensor, compute_mode: int) -> bool:
    if compute_mode in (_ALWAYS_BY_PRODUCT, _NEVER_BY_PRODUCT):
        return compute_mode == _ALWAYS_BY_PRODUCT
    rows = [lowest(x.shape[-2]) or 0 for x in (x1, x2)]
    return max(rows) > _BY_PRODUCT_ABOVE


def _euclidean_by_product(x1: Tensor, x2: Tensor) -> Tensor:
    """|a - b|^2 = |a|^2 + |b|^2 - 2 a b, all in one product."""
    square1 = x1.pow(2).sum(-1, keepdim=True)
    square2 = x2.pow(2).sum(-1, keepdim=True)
    left = torch.cat((-2.0 * x1, square1, torch.ones_like(square1)), -1)
    right = torch.cat((x2, torch.ones_like(square2), square2), -1)
    return torch.matmul(left, right.transpose(-2, -1)).clamp(min=0.0).sqrt()


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension."""
    size = difference.abs()
    if p == 0.0:
        return (size != 0).to(size.dtype).sum(-1)
    if p == 1.0:
        return size.sum(-1)
    if p == 2.0:
        return (size * size).sum(-1).sqrt()
    if math.isinf(p):
        return size.amax(-1)
    return size.pow(p).sum(-1).pow(1.0 / p)


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """`_pdist_forward`: the distance of every two rows, each pair once."""
    count = x.shape[0]
    if not product_is_at_most([count, count, count], _MOST_COMPARISONS):
        return NotImplemented
    rows = torch.arange(count - 1, device=x.device)
    starts = rows * count - torch.div(rows * (rows + 1), 2, rounding_mode="floor")
    pairs = torch.arange(count * (count - 1) // 2, device=x.device)
    first = (pairs.unsqueeze(-1) >= starts).to(torch.int64).sum(-1) - 1
    second = pairs - starts.index_select(0, first) + first + 1
    return _norm(x.index_select(0, first) - x.index_select(0, second), p)


DISTANCES: Mapping[str, Callable[..., Any]] = {
    "_cdist_forward": cdist,
    "_euclidean_dist": _euclidean_by_product,
    "_pdist_forward": _pdist,
    "pdist": _pdist,
}
