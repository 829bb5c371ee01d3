"""Pooling to a fixed number of windows, for any size of the input.

Enters: the arguments of one operator. Leaves: its result, from windows that are gathered and reduced. Separate because
torch.onnx has these only where every window has the same size, and never with indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from torch2engine.exporter.decompositions.size_bounds import is_fixed, smaller

__all__ = ["POOLING", "max_pool_of_row"]

_AVG_POOL: Mapping[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


def max_pool_of_row(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`max_pool1d` as the pooling of pictures that are one row high: PyTorch's own makes a number of the length."""
    size, pad, spread = (_first(value) for value in (kernel_size, padding, dilation))
    step = _first(stride) if stride else size
    pooled = functional.max_pool2d(x.unsqueeze(-2), (1, size), (1, step), (0, pad), (1, spread), ceil_mode)
    return pooled.squeeze(-2)


def _first(value: Any) -> Any:
    return next(iter(cast("Sequence[Any]", value))) if isinstance(value, (tuple, list)) else value


_MAX_POOL: Mapping[int, Callable[..., Tensor]] = {
    1: max_pool_of_row,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}


@dataclass(frozen=True)
class _Windows:
    """The windows along one dimension.

    Args:
        positions: [windows, largest length] of the elements; a shorter window repeats its last one.
        counts: [windows] of elements that are no repetition.
    """

    positions: Tensor
    counts: Tensor

    def are_real(self) -> Tensor:
        """[windows, largest length], false for repetitions."""
        return torch.arange(self.positions.shape[1], device=self.counts.device) < self.counts.unsqueeze(-1)


def _windows(size: int, count: int, device: torch.device) -> _Windows:
    """Window i begins at floor(i * size / count) and ends before ceil((i + 1) * size / count), as in PyTorch."""
    numbers = torch.arange(count, device=device)
    starts = numbers * size // count
    ends = ((numbers + 1) * size + count - 1) // count
    # Windows are longer than size / count by less than 2 elements.
    longest = size // count if _divides(count, size) else size // count + 2
    positions = starts.unsqueeze(-1) + torch.arange(longest, device=device)
    return _Windows(torch.minimum(positions, ends.unsqueeze(-1) - 1), ends - starts)


def _divides(count: int, size: int) -> bool:
    return is_fixed(size) and size % count == 0


def _gather(x: Tensor, windows: Sequence[_Windows]) -> Tensor:
    """[..., windows of each dimension, elements of each dimension]."""
    first = x.dim() - len(windows)
    for dim, along in enumerate(windows, first):
        x = torch.movedim(_gather_one(x, dim, along), dim + 1, -1)
    return x


def _gather_one(x: Tensor, dim: int, along: _Windows) -> Tensor:
    """[..., windows, elements, ...] in the place of `dim`."""
    gathered = x.index_select(dim, along.positions.flatten())
    return gathered.reshape([*x.shape[:dim], *along.positions.shape, *x.shape[dim + 1 :]])


def _windows_of(x: Tensor, output_size: Sequence[int | None]) -> list[_Windows]:
    sizes = x.shape[-len(output_size) :]
    counts = [size if count is None else count for size, count in zip(sizes, output_size, strict=True)]
    return [_windows(size, count, x.device) for size, count in zip(sizes, counts, strict=True)]


def _adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest element of each window, and its place in the flattened input."""
    windows = _windows_of(x, output_size)
    return _max_of(x, output_size, windows), _places_of_largest(x, windows)


def _places_of_largest(x: Tensor, windows: Sequence[_Windows]) -> Tensor:
    """The first place of each window's largest element, in the flattened input."""
    rank = len(windows)
    elements = _gather(x, windows).flatten(-rank)
    places = torch.zeros((1,) * (2 * rank), dtype=torch.int64, device=x.device)
    for number, along in enumerate(windows):
        shape = [1] * (2 * rank)
        shape[number] = along.positions.shape[0]
        shape[rank + number] = along.positions.shape[1]
        places = places * x.shape[number - rank] + along.positions.reshape(shape)
    largest = elements.argmax(-1, keepdim=True)
    return places.flatten(-rank).expand(elements.shape).gather(-1, largest).squeeze(-1)


def _max_of(x: Tensor, output_size: Sequence[int], windows: Sequence[_Windows]) -> Tensor:
    """The largest elements: by an ordinary pooling where every window has the same size."""
    sizes = x.shape[-len(output_size) :]
    if all(_divides(count, size) for size, count in zip(sizes, output_size, strict=True)):
        window = [size // count for size, count in zip(sizes, output_size, strict=True)]
        return _MAX_POOL[len(window)](x, window)
    return _gather(x, windows).flatten(-len(windows)).amax(-1)


def _adaptive_avg_pool(x: Tensor, output_size: Sequence[int | None]) -> Tensor:
    """The mean of each window."""
    windows = _windows_of(x, output_size)
    for dim, along in enumerate(windows, x.dim() - len(windows)):
        later = [1] * (x.dim() - dim - 1)
        real = along.are_real()
        elements = torch.where(real.reshape([*real.shape, *later]), _gather_one(x, dim, along), 0.0)
        x = elements.sum(dim + 1) / along.counts.to(x.dtype).reshape([-1, *later])
    return x


def _adaptive_avg_pool_of(dimensions: int) -> Callable[[Tensor, Sequence[int | None]], Tensor]:
    """An ordinary pooling where every window has the same size."""

    def decomposition(x: Tensor, output_size: Sequence[int | None]) -> Tensor:
        pairs = list(zip(x.shape[-dimensions:], output_size, strict=True))
        if all(count is None or _divides(count, size) for size, count in pairs):
            return _AVG_POOL[dimensions](x, [1 if count is None else size // count for size, count in pairs])
        return _adaptive_avg_pool(x, output_size)

    return decomposition


def _max_pool_with_indices(rank: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """`max_pool1d/2d/3d_with_indices`: TensorRT's pooling gives no places."""

    def decomposition(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        kernel, step, edge, apart = (
            _each(part, rank) for part in (kernel_size, stride or kernel_size, padding, dilation)
        )
        windows = [
            _along(x.shape[number - rank], _Step(*options), ceil_mode, x.device)
            for number, options in enumerate(zip(kernel, step, edge, apart, strict=True))
        ]
        values = _gather(x, windows).flatten(-rank).amax(-1)
        return values, _places_of_largest(x, windows)

    return decomposition


@dataclass(frozen=True)
class _Step:
    """A pooling's numbers along one dimension."""

    kernel: int
    stride: int
    padding: int
    dilation: int


def _along(size: int, step: _Step, ceil_mode: bool, device: torch.device) -> _Windows:
    """The windows of a pooling along a dimension of this size."""
    reach = step.dilation * (step.kernel - 1) + 1
    free = size + 2 * step.padding - reach
    count = (free + (step.stride - 1 if ceil_mode else 0)) // step.stride + 1
    if ceil_mode:  # no window begins behind the elements and the padding before them
        count = smaller(count, (size + step.padding - 1) // step.stride + 1)
    starts = torch.arange(count, device=device) * step.stride - step.padding
    positions = starts.unsqueeze(-1) + torch.arange(step.kernel, device=device) * step.dilation
    # A place outside is replaced by the nearest one of the same window, which changes no maximum.
    first = _first_inside(starts, step.dilation)
    last = _last_inside(starts, step.kernel, step.dilation, size)
    positions = torch.minimum(torch.maximum(positions, first.unsqueeze(-1)), last.unsqueeze(-1))
    return _Windows(positions, positions[:, 0])


def _dilated_max_pool(rank: int) -> Callable[..., Tensor]:
    """`max_pool1d/2d/3d` of elements that lie apart, which TensorRT lacks."""
    with_indices = _max_pool_with_indices(rank)

    def decomposition(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Tensor:
        if all(step == 1 for step in dilation):
            return NotImplemented
        return with_indices(x, kernel_size, stride, padding, dilation, ceil_mode)[0]

    return decomposition


def _each(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


def _first_inside(starts: Tensor, apart: int) -> Tensor:
    """The first position of each window that is not before the first element."""
    skipped = torch.div((-starts).clamp(min=0) + (apart - 1), apart, rounding_mode="floor")
    return starts + skipped * apart


def _last_inside(starts: Tensor, kernel: int, apart: int, size: int) -> Tensor:
    """The last position of each window that is not behind the last element."""
    beyond = (starts + (kernel - 1) * apart - (size - 1)).clamp(min=0)
    skipped = torch.div(beyond + (apart - 1), apart, rounding_mode="floor")
    return starts + (kernel - 1 - skipped) * apart


def _avg_pool(rank: int) -> Callable[..., Tensor]:
    """`avg_pool2d/3d` with a given divisor, which torch.onnx ignores: the sum of each window, divided."""

    def decomposition(
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        if divisor_override is None:
            return NotImplemented
        kernel, step, edge = (_each(part, rank) for part in (kernel_size, stride or kernel_size, padding))
        pads: list[int] = []
        for number in reversed(range(rank)):  # the last dimension comes first
            pads += [edge[number], edge[number] + (step[number] - 1 if ceil_mode else 0)]
        means = _AVG_POOL[rank](functional.pad(x, pads), kernel, step)
        if ceil_mode:  # PyTorch has no window that begins behind the elements and their padding
            for number in range(rank):
                dim = x.dim() - rank + number
                most = (x.shape[dim] + edge[number] - 1) // step[number] + 1
                means = means.narrow(dim, 0, smaller(means.shape[dim], most))
        return means * (math.prod(kernel) / divisor_override)

    return decomposition


POOLING: Mapping[str, Callable[..., Any]] = {
    "adaptive_max_pool1d": _adaptive_max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "adaptive_max_pool3d": _adaptive_max_pool,
    "adaptive_avg_pool1d": _adaptive_avg_pool_of(1),
    "_adaptive_avg_pool2d": _adaptive_avg_pool_of(2),
    "_adaptive_avg_pool3d": _adaptive_avg_pool_of(3),
    "max_pool1d": _dilated_max_pool(1),
    "max_pool2d": _dilated_max_pool(2),
    "max_pool3d": _dilated_max_pool(3),
    "max_pool1d_with_indices": _max_pool_with_indices(1),
    "max_pool2d_with_indices": _max_pool_with_indices(2),
    "max_pool3d_with_indices": _max_pool_with_indices(3),
    "avg_pool2d": _avg_pool(2),
    "avg_pool3d": _avg_pool(3),
}
