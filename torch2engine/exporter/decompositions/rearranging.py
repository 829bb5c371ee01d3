"""Rolling, cropping and dropping dimensions of any size, and views by strides.

Enters: the arguments of one operator. Leaves: its result. Separate because torch.onnx writes these for sizes that are
numbers or tensors in the order of memory, or lets TensorRT find a dimension of size 1 at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.memory_layout import order_in_memory
from torch2engine.exporter.decompositions.size_bounds import is_fixed

__all__ = ["REARRANGING", "roll"]


def roll(x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Tensor:
    """Turn each dimension by its shift, which may be symbolic; without dimensions, the flattened tensor."""
    all_shifts = _as_list(shifts)
    all_dims = _as_list(dims)
    if not all_dims:
        return roll(x.flatten(), all_shifts, [0]).reshape(x.shape)
    for shift, dim in zip(all_shifts, all_dims, strict=True):
        size: int = x.shape[dim]
        places = torch.remainder(torch.arange(size, device=x.device) - shift, size)
        x = x.index_select(dim, places)
    return x


def _as_list(value: Any) -> list[int]:
    """A number, which may be symbolic, or several."""
    return list[int](cast("Any", value)) if isinstance(value, (list, tuple)) else [value]


def _squeeze(x: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    """`squeeze`: a symbolic size is never 1."""
    named = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    dropped = {dim % x.dim() for dim in named if x.dim()}
    return x.reshape([size for dim, size in enumerate(x.shape) if dim not in dropped or not _is_one(size)])


def _is_one(size: Any) -> bool:
    return is_fixed(size) and size == 1


def _replicated(place: Tensor, size: int) -> Tensor:
    return torch.minimum(place.clamp(min=0), torch.full_like(place, size - 1))


def _reflected(place: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - place.abs()).abs()


_PLACES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "replicate": _replicated,
    "reflect": _reflected,
    "circular": torch.remainder,
}


def _pad(x: Tensor, padding: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`pad` that repeats elements and is negative somewhere, which ONNX Runtime refuses: by the elements' places."""
    if mode == "constant" or all(amount >= 0 for amount in padding):
        return NotImplemented
    for number in range(len(padding) // 2):
        before, after = padding[2 * number : 2 * number + 2]
        dim = x.dim() - 1 - number
        size: int = x.shape[dim]
        places = torch.arange(size + before + after, device=x.device) - before
        x = x.index_select(dim, _PLACES[mode](places, size))
    return x


def _as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """`as_strided` of a tensor whose dimensions have another order in memory, which strides follow."""
    order = order_in_memory(x)
    if order is None or order == sorted(order):
        return NotImplemented
    return torch.as_strided(x.permute(order), size, stride, storage_offset)


REARRANGING: Mapping[str, Callable[..., Any]] = {
    "roll": roll,
    "squeeze": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "pad": _pad,
    "as_strided": _as_strided,
}
