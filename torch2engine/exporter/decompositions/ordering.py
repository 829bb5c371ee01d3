"""Order statistics, and places in sorted sequences.

Enters: the arguments of one operator. Leaves: its result, from a sort or from comparisons. Separate because ONNX sorts,
but neither selects nor searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.size_bounds import product_is_at_most

__all__ = ["ORDERING", "kthvalue", "median", "searchsorted"]

_MOST_COMPARISONS = 2**24


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Find the k-th smallest element and its place; NaN counts as the largest."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    last = x.movedim(dim, -1)
    values, places = _sort(last)
    return _restored(values.select(-1, k - 1), places.select(-1, k - 1), x, dim, keepdim)


def _sort(last: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the last dimension; NaN stands last, as in PyTorch. ONNX says nothing about NaN."""
    if not last.is_floating_point():
        return last.sort(-1)
    missing = last.isnan()
    _, by_value = torch.where(missing, torch.inf, last).sort(-1)
    # An infinity and a NaN were equal so far; a NaN is placed behind all others.
    count = (~missing).to(torch.int64).sum(-1, keepdim=True)
    are_missing = missing.gather(-1, by_value)
    behind = are_missing.to(torch.int64).cumsum(-1) + count - 1
    before = (~are_missing).to(torch.int64).cumsum(-1) - 1
    target = torch.where(are_missing, behind, before)
    places = torch.zeros_like(by_value).scatter(-1, target, by_value)
    return last.gather(-1, places), places


def _restored(value: Tensor, place: Tensor, x: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    if keepdim:
        dim = dim % x.dim()
        return value.unsqueeze(dim), place.unsqueeze(dim)
    return value, place


def _stable_sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """`sort.stable`: equal elements keep their order, since each element's rank is counted.

    Above `_MOST_COMPARISONS` it becomes an ordinary sort, with ONNX's order of equal elements: the first one first.
    """
    if not stable or not x.dim() or not product_is_at_most([*x.shape, x.shape[dim]], _MOST_COMPARISONS):
        return torch.sort(x, dim, descending)
    last = x.movedim(dim, -1)
    one = last.unsqueeze(-1)
    other = last.unsqueeze(-2)
    before = other > one if descending else other < one
    equal = other == one
    if x.is_floating_point():  # NaN counts as the largest
        later = one if not descending else other
        sooner = other if not descending else one
        before = before | (later.isnan() & ~sooner.isnan())
        equal = equal | (one.isnan() & other.isnan())
    places = torch.arange(last.shape[-1], device=x.device)
    earlier = places < places.unsqueeze(-1)
    rank = (before | (equal & earlier)).to(torch.int64).sum(-1)
    order = torch.zeros_like(rank).scatter(-1, rank, places.expand(rank.shape))
    return last.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)


def median_of_dimension(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Find the lower median and its place; NaN where there is one."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    last = x.movedim(dim, -1)
    values, places = last.sort(-1)
    middle = (last.shape[-1] - 1) // 2
    value = values.select(-1, middle)
    place = places.select(-1, middle)
    if x.is_floating_point():
        missing = last.isnan()
        any_missing = missing.any(-1)
        value = torch.where(any_missing, torch.nan, value)
        place = torch.where(any_missing, missing.to(torch.int64).argmax(-1), place)
    return _restored(value, place, x, dim, keepdim)


def median(x: Tensor) -> Tensor:
    """Find the lower median of all elements; NaN where there is one."""
    return median_of_dimension(x.flatten(), 0)[0]


def nanmedian_of_dimension(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Find the lower median of the elements that are no NaN, and its place; NaN where all are."""
    if not x.is_floating_point():
        return median_of_dimension(x, dim, keepdim)
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    last = x.movedim(dim, -1)
    count = (~last.isnan()).to(torch.int64).sum(-1, keepdim=True)
    middle = ((count - 1).clamp(min=0)) // 2
    values, places = _sort(last)
    value = values.gather(-1, middle).squeeze(-1)
    place = places.gather(-1, middle).squeeze(-1)
    return _restored(value, place, x, dim, keepdim)


def nanmedian(x: Tensor) -> Tensor:
    """Find the lower median of all numbers; NaN where there is no number."""
    return nanmedian_of_dimension(x.flatten(), 0)[0]


def mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Find the most frequent value, the smallest of several, and its last place.

    Memory grows with the square of the dimension's size.
    """
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    last = x.movedim(dim, -1)
    values, _ = last.sort(-1)
    counts = (values.unsqueeze(-1) == values.unsqueeze(-2)).to(torch.int64).sum(-1)
    value = values.gather(-1, counts.argmax(-1, keepdim=True))  # argmax: the first of several
    places = torch.arange(last.shape[-1], device=x.device)
    place = torch.where(last == value, places, 0).amax(-1)
    return _restored(value.squeeze(-1), place, x, dim, keepdim)


def searchsorted(
    boundaries: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Count the boundaries below each element ("left"), or not above it ("right"); NaN stands behind all.

    Memory grows with the number of elements times the number of boundaries.
    """
    if sorter is not None:
        boundaries = boundaries.gather(-1, sorter)
    if side is not None:
        right = side == "right"
    rows = boundaries if boundaries.dim() == 1 else boundaries.unsqueeze(-2)
    elements = x.unsqueeze(-1)
    is_not_before = rows > elements if right else rows >= elements
    count = (~is_not_before).to(torch.int64).sum(-1)
    return count.to(torch.int32) if out_int32 else count


def _searchsorted_scalar(boundaries: Tensor, x: float, **options: Any) -> Tensor:
    """`searchsorted` of a number."""
    dtype = boundaries.dtype if isinstance(x, int) or boundaries.is_floating_point() else torch.get_default_dtype()
    return searchsorted(boundaries, torch.full((), x, dtype=dtype, device=boundaries.device), **options)


def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Find each element's bucket."""
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


def _isin(elements: Tensor, tests: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Tell which elements stand among the others."""
    found = (elements.unsqueeze(-1) == tests.flatten()).any(-1)
    return ~found if invert else found


ORDERING: Mapping[str, Callable[..., Any]] = {
    "sort.stable": _stable_sort,
    "kthvalue": kthvalue,
    "median.dim": median_of_dimension,
    "median": median,
    "nanmedian.dim": nanmedian_of_dimension,
    "nanmedian": nanmedian,
    "mode": mode,
    "searchsorted.Tensor": searchsorted,
    "searchsorted.Scalar": _searchsorted_scalar,
    "bucketize.Tensor": bucketize,
    "isin.Tensor_Tensor": _isin,
}
