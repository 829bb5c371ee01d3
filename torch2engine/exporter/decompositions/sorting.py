"""Sorts of more elements than TensorRT's TopK gives.

Enters: the arguments of one operator. Leaves: its result, from sorted parts that are merged. Separate because only long
dimensions need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import highest, product_is_at_most

__all__ = ["MOST_OF_TOPK", "SORTING"]

MOST_OF_TOPK = 3840  # TensorRT-RTX 1.6
_MOST_SEARCHES = 2**24


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """`sort` of a long dimension."""
    if x.dtype in (torch.bool, torch.uint8):  # ONNX or TensorRT sort neither
        values, places = torch.sort(x.to(torch.int32), dim, descending)
        return values.to(x.dtype), places
    most = highest(x.shape[dim]) if x.dim() else 1
    if most is None or most <= MOST_OF_TOPK:
        return NotImplemented
    count = math.ceil(most / MOST_OF_TOPK)
    others = [size for other, size in enumerate(x.shape) if other != dim % x.dim()]
    if not product_is_at_most([*others, count, most + count], _MOST_SEARCHES):
        return NotImplemented
    last = x.movedim(dim, -1)
    order = _order(last, count, math.ceil(most / count), descending)
    return last.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)


def _order(last: Tensor, count: int, length: int, descending: bool) -> Tensor:
    """The places of the sorted elements of the last dimension, from `count` parts of `length` elements each.

    Equal elements keep their order as far as TopK keeps it.
    """
    size = last.shape[-1]
    keys = torch.where(last.isnan(), torch.inf, last) if last.is_floating_point() else last  # NaN is the largest
    filling = torch.full(
        (*last.shape[:-1], count * length - size), _end(last.dtype, descending), dtype=last.dtype, device=last.device
    )
    parts = torch.cat((keys, filling), -1).reshape(*last.shape[:-1], count, length)
    values, places = parts.sort(-1, descending)
    numbers = torch.arange(count, device=last.device).unsqueeze(-1)
    places = (places + numbers * length).flatten(-2)
    rank = _ranks(values, descending)
    order = torch.zeros_like(places).scatter(-1, rank, places).narrow(-1, 0, size)
    # A filled place may stand before an element that is as far at the end.
    return order.clamp(max=size - 1)


def _end(dtype: torch.dtype, descending: bool) -> float:
    """The value that no other stands behind."""
    if dtype.is_floating_point:
        return -math.inf if descending else math.inf
    return torch.iinfo(dtype).min if descending else torch.iinfo(dtype).max


def _ranks(values: Tensor, descending: bool) -> Tensor:
    """The place of each element in the merged order; values [..., parts, length] are sorted parts.

    It is the element's place in its own part, and the number of elements before it in each other one, which a binary
    search finds.
    """
    count, length = values.shape[-2:]
    elements = values.flatten(-2).unsqueeze(-2)  # [..., 1, elements]
    own_part = torch.arange(count, device=values.device).repeat_interleave(length)
    own_place = torch.arange(length, device=values.device).repeat(count)
    part = torch.arange(count, device=values.device).unsqueeze(-1)
    is_earlier = part < own_part  # equal elements of an earlier part stand before
    before = torch.zeros_like(elements.expand(*values.shape[:-1], -1), dtype=torch.int64)
    step = 2 ** (length.bit_length() - 1)
    while step:
        tried = before + step
        found = values.gather(-1, (tried - 1).clamp(max=length - 1))
        stands_before = found > elements if descending else found < elements
        stands_before = (stands_before | ((found == elements) & is_earlier)) & (tried <= length)
        before = torch.where(stands_before, tried, before)
        step //= 2
    return torch.where(part == own_part, own_place, before).sum(-2)


def _topk(
    x: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # PyTorch's name
) -> tuple[Tensor, Tensor]:
    """`topk` of more elements than TensorRT gives: a part of all, sorted."""
    most = highest(k)
    if most is None or most <= MOST_OF_TOPK or x.dim() == 0:
        return NotImplemented
    values, places = torch.sort(x, dim, largest)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


SORTING: Mapping[str, Callable[..., Any]] = {"sort": _sort, "topk": _topk}
