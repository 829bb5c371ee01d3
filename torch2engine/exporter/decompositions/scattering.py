"""Values that are added up, multiplied or compared at given places.

Enters: the arguments of one operator. Leaves: its result, from comparisons of all places with all indices. Separate
because TensorRT-RTX scatters without any reduction. Above `MOST_COMPARISONS` torch.onnx's form stays, which needs no
memory for comparisons; ONNX Runtime and TensorRT have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import product_is_at_most

__all__ = ["MOST_COMPARISONS", "SCATTERING"]

MOST_COMPARISONS = 2**24


def _is_feasible(places: Any, index: Tensor) -> bool:
    """Tell whether every place can be compared with every index."""
    return product_is_at_most([places, *index.shape], MOST_COMPARISONS)


def _least(dtype: torch.dtype) -> float:
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _largest(dtype: torch.dtype) -> float:
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _reduce_last(x: Tensor, index: Tensor, source: Tensor, reduction: str, include_self: bool) -> Tensor:
    """Reduce source [..., m] into x [..., n] at index [..., m]; a place without an index keeps its value."""
    places = torch.arange(x.shape[-1], device=x.device).unsqueeze(-1)
    hits = index.unsqueeze(-2) == places
    values = source.unsqueeze(-2)
    touched = hits.any(-1)
    if reduction in ("amax", "amin"):
        neutral = _least(x.dtype) if reduction == "amax" else _largest(x.dtype)
        reduced = torch.where(hits, values, neutral)
        reduced = reduced.amax(-1) if reduction == "amax" else reduced.amin(-1)
        combine = torch.maximum if reduction == "amax" else torch.minimum
        reduced = combine(reduced, x) if include_self else reduced
    elif reduction == "prod":
        reduced = torch.where(hits, values, 1).prod(-1, dtype=x.dtype)
        reduced = reduced * x if include_self else reduced
    else:
        reduced = torch.where(hits, values, 0).sum(-1, dtype=x.dtype)
        reduced = reduced + x if include_self else reduced
        if reduction == "mean":
            count = hits.to(torch.int64).sum(-1) + (1 if include_self else 0)
            reduced = _quotient(reduced, count.clamp(min=1))
    return reduced if include_self and reduction != "mean" else torch.where(touched, reduced, x)


def _quotient(total: Tensor, count: Tensor) -> Tensor:
    if total.is_floating_point():
        return total / count.to(total.dtype)
    return torch.div(total, count.to(total.dtype), rounding_mode="floor")


def _scatter(x: Tensor, dim: int, index: Tensor, source: Tensor, reduction: str, include_self: bool) -> Tensor:
    if x.dim() == 0 or index.dim() != x.dim() or x.dtype == torch.bool or not _is_feasible(x.shape[dim], index):
        return NotImplemented
    dim = dim % x.dim()
    part = _part_of(x, dim, index)
    source = _part_of(source, None, index)
    reduced = _reduce_last(
        part.movedim(dim, -1), index.movedim(dim, -1), source.movedim(dim, -1), reduction, include_self
    )
    return _with_rest(reduced.movedim(-1, dim), x)


def _part_of(x: Tensor, dim: int | None, index: Tensor) -> Tensor:
    """The leading part of x that an index of smaller dimensions reaches; `dim` stays whole."""
    for other, size in enumerate(index.shape):
        if other != dim and x.shape[other] != size:
            x = x.narrow(other, 0, size)
    return x


def _with_rest(part: Tensor, x: Tensor) -> Tensor:
    """x with its leading part replaced."""
    for dim in reversed(range(x.dim())):
        size = part.shape[dim]
        if size == x.shape[dim]:
            continue
        rest = x.narrow(dim, size, x.shape[dim] - size)
        for earlier in range(dim):
            if rest.shape[earlier] != part.shape[earlier]:
                rest = rest.narrow(earlier, 0, part.shape[earlier])
        part = torch.cat((part, rest), dim)
    return part


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Add source's elements to x at index."""
    return _scatter(x, dim, index, source, "sum", True)


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Reduce source's elements at index by "sum", "prod", "mean", "amax" or "amin"."""
    return _scatter(x, dim, index, source, reduce, include_self)


def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`index_reduce`: whole slices of source at index."""
    if x.dim() == 0:
        options: dict[str, Any] = {"include_self": include_self}
        found = _index_reduce(x.reshape(1), 0, index.reshape(-1), source.reshape(-1), reduce, **options)
        return NotImplemented if found is NotImplemented else found.reshape(())
    source = source.reshape(1) if source.dim() == 0 else source
    shape = [1] * x.dim()
    shape[dim % x.dim()] = -1
    return _scatter(x, dim, index.reshape(shape).expand(source.shape), source, reduce, include_self)


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Add slices of source, times alpha, to x at index."""
    return _index_reduce(x, dim, index, source * alpha if alpha != 1 else source, "sum")


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """`index_put` that adds: leading dimensions become one, with one index."""
    if not accumulate or any(index is None or index.dtype == torch.bool for index in indices):
        return NotImplemented
    count = len(indices)
    given = [index for index in indices if index is not None]
    every: Sequence[Tensor] = cast("Any", torch.broadcast_tensors)(*given)
    flat = torch.zeros_like(every[0], dtype=torch.int64)
    for size, index in zip(x.shape[:count], every, strict=True):
        flat = flat * size + torch.where(index < 0, index + size, index).to(torch.int64)
    rest = x.shape[count:]
    rows = x.reshape(-1, *rest)
    source = values.to(x.dtype).expand(*flat.shape, *rest).reshape(-1, *rest)
    added = index_add(rows, 0, flat.reshape(-1), source)
    return NotImplemented if added is NotImplemented else added.reshape(x.shape)


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Put source's elements, one after another, where the mask is true."""
    shape: Sequence[int] = cast("Any", torch.broadcast_shapes)(x.shape, mask.shape)
    is_set = mask.expand(shape)
    number = is_set.flatten().to(torch.int64).cumsum(0) - 1
    values = source.flatten().index_select(0, number.clamp(min=0)).reshape(shape)
    return torch.where(is_set, values, x)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Take elements of the flattened tensor."""
    count = x.numel()
    places = index.flatten()
    places = torch.where(places < 0, places + count, places)
    return x.flatten().index_select(0, places).reshape(index.shape)


def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Put elements into the flattened tensor, or add them."""
    places = index.flatten()
    places = torch.where(places < 0, places + x.numel(), places)
    if accumulate:
        added = index_add(x.flatten(), 0, places, source.flatten())
        return NotImplemented if added is NotImplemented else added.reshape(x.shape)
    return x.flatten().scatter(0, places, source.flatten()).reshape(x.shape)


def _gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """`gather` by an index of smaller dimensions, as one of equal dimensions."""
    if x.dim() == 0 or index.dim() != x.dim():
        return NotImplemented
    part = _part_of(x, dim % x.dim(), index)
    return NotImplemented if part is x else torch.gather(part, dim, index)


def _scatter_values(x: Tensor, dim: int, index: Tensor, source: Any) -> Tensor:
    """`scatter` by an index of smaller dimensions, as one of equal dimensions."""
    if x.dim() == 0 or index.dim() != x.dim():
        return NotImplemented
    part = _part_of(x, dim % x.dim(), index)
    source = _part_of(source, None, index) if isinstance(source, Tensor) else source
    return NotImplemented if part is x else _with_rest(torch.scatter(part, dim, index, source), x)


def _as_strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """`as_strided_scatter` into a contiguous tensor."""
    if not x.is_contiguous():
        return NotImplemented
    places = torch.full([1] * len(size), storage_offset or 0, dtype=torch.int64, device=x.device)
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = -1
        places = places + (torch.arange(count, device=x.device) * step).reshape(shape)
    return x.flatten().scatter(0, places.flatten(), source.flatten()).reshape(x.shape)


SCATTERING: Mapping[str, Callable[..., Any]] = {
    "scatter_add": scatter_add,
    "scatter_reduce.two": scatter_reduce,
    "index_add": index_add,
    "index_reduce": _index_reduce,
    "gather": _gather,
    "scatter.src": _scatter_values,
    "scatter.value": _scatter_values,
    "as_strided_scatter": _as_strided_scatter,
    "index_put": _index_put,
    "masked_scatter": masked_scatter,
    "take": take,
    "put": put,
}
