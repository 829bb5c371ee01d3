"""PyTorch's functions that turn a size into a number, made to take sizes that follow a dynamic axis.

Enters: a model while it is traced. Leaves: nothing; meanwhile these functions are computed from others that keep sizes
symbolic. Separate because torch would fix the axis otherwise, or refuse to trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode

from torch2engine.exporter import group_convolutions
from torch2engine.exporter.decompositions.pooling import max_pool_of_row

__all__ = ["SymbolicSizeArguments"]


class SymbolicSizeArguments(TorchFunctionMode):
    """While it is active, functions of `_REPLACEMENTS` take symbolic sizes, and those of `_CHECKED` can be traced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a function that torch can't trace as it is; call any other."""
        options: Mapping[str, Any] = kwargs or {}
        name = getattr(func, "__name__", "")
        replacement = _CHECKED.get(name)
        if replacement is None and any(_is_symbolic(value) for value in (*args, *options.values())):
            replacement = _REPLACEMENTS.get(name)
        if replacement is not None:
            result = replacement(*args, **options)
            if result is not NotImplemented:
                return result
        return func(*args, **options)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, SymInt) or (isinstance(value, (tuple, list)) and any(map(_is_symbolic, _as_list(value))))


def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """`linspace`: from both ends towards the middle, as PyTorch computes it."""
    dtype = options.pop("dtype", None) or torch.get_default_dtype()
    if not dtype.is_floating_point:  # whole numbers are rounded towards zero
        return NotImplemented
    index = torch.arange(steps, dtype=dtype, **options)
    intervals = torch.ones_like(index).sum() - 1
    step = (end - start) / torch.clamp(intervals, min=1)
    last = torch.where(intervals > 0, end, start)  # one value is the start
    # PyTorch rounds the product and the sum as one (FMA), which shows where they cancel: so the step is added in two
    # parts whose products are exact.
    shifted = step * 4097
    high = shifted - (shifted - step)
    low = step - high
    back = index.flip(0)
    return torch.where(index < back, (start + high * index) + low * index, (last - high * back) - low * back)


def _one_hot(values: Tensor, num_classes: Any = -1) -> Tensor:
    """`one_hot`: 1 where a value is the class's number."""
    classes = torch.arange(num_classes, device=values.device)
    return (values.unsqueeze(-1) == classes).to(torch.int64)


def _places(size: Any, periodic: bool, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The places in a window from 0 on, and how many intervals it has; at least one."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    places = torch.arange(size, dtype=dtype, device=options.get("device"))
    count = torch.ones_like(places).sum()
    return places, torch.clamp(count if periodic else count - 1, min=1)


def _of_cosines(*weights: float) -> Callable[..., Tensor]:
    """A window that is a sum of cosines, with alternating signs; that of one place is 1."""

    def window(size: Any, periodic: bool = True, **options: Any) -> Tensor:
        places, intervals = _places(size, periodic, options)
        angle = places * (2 * math.pi / intervals)
        total = torch.zeros_like(places)
        for turn, weight in enumerate(weights):
            total = total + (-1) ** turn * weight * torch.cos(turn * angle)
        return torch.where(torch.ones_like(places).sum() > 1, total, 1.0)

    return window


def _hamming_window(
    size: Any, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, **options: Any
) -> Tensor:
    """`hamming_window`."""
    return _of_cosines(alpha, beta)(size, periodic, **options)


def _bartlett_window(size: Any, periodic: bool = True, **options: Any) -> Tensor:
    """`bartlett_window`: a triangle; that of one place is 1."""
    places, intervals = _places(size, periodic, options)
    triangle = 1 - torch.abs(2 * places / intervals - 1)
    return torch.where(torch.ones_like(places).sum() > 1, triangle, 1.0)


def _tril_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.int64, device: Any = None, **_: Any
) -> Tensor:
    """`tril_indices` of a square, on or below its diagonal."""
    if not _is_square(row, col) or offset > 0:
        return NotImplemented
    rows, columns = _triangle(row + offset, device)
    return torch.stack((rows - offset, columns)).to(dtype)


def _triu_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.int64, device: Any = None, **_: Any
) -> Tensor:
    """`triu_indices` of a square, on or above its diagonal: the lower triangle, from its end."""
    if not _is_square(row, col) or offset < 0:
        return NotImplemented
    rows, columns = _triangle(row - offset, device)
    last = row - offset - 1
    return torch.stack((last - rows.flip(0), last - columns.flip(0) + offset)).to(dtype)


def _is_square(row: Any, col: Any) -> bool:
    return bool(row == col)


def _triangle(size: Any, device: Any) -> tuple[Tensor, Tensor]:
    """The rows and columns of a square's lower triangle, one row after another."""
    place = torch.arange(size * (size + 1) // 2, device=device)
    guess = torch.floor((torch.sqrt(8 * place.to(torch.float32) + 1) - 1) / 2).to(torch.int64)
    guess = guess - (guess * (guess + 1) // 2 > place).to(torch.int64)  # the root was rounded
    row = guess + ((guess + 1) * (guess + 2) // 2 <= place).to(torch.int64)
    return row, place - row * (row + 1) // 2


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """`as_tensor`, which copies numbers as `tensor` does."""
    return torch.tensor(data, dtype=dtype, device=device)


def _average(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pooling whose window is the whole image."""
    dims = _dims_of_whole_window(x, kernel_size, padding)
    return NotImplemented if dims is None or divisor_override is not None else x.mean(dims, keepdim=True)


def _largest(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Maximum pooling whose window is the whole image."""
    dims = _dims_of_whole_window(x, kernel_size, padding)
    is_plain = dilation in (1, (1,), (1, 1)) and not return_indices
    return NotImplemented if dims is None or not is_plain else x.amax(dims, keepdim=True)


def _dims_of_whole_window(x: Tensor, kernel_size: Any, padding: Any) -> list[int] | None:
    """The dimensions that a window without padding covers; None where it covers one of them only in part."""
    sizes = _as_list(kernel_size)
    paddings = _as_list(padding)
    dims = list(range(-len(sizes), 0))
    if len(dims) > x.dim() - 1:
        return None
    is_whole = all(bool(size == x.shape[dim]) for size, dim in zip(sizes, dims, strict=True))
    return dims if is_whole and not any(paddings) else None


def _as_list(value: Any) -> list[Any]:
    return [*value] if isinstance(value, (tuple, list)) else [value]


def _affine_grid(theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
    """`affine_grid`: the coordinates of every pixel, mapped by each matrix.

    Args:
        theta: [batch, 2, 3] or [batch, 3, 4].
        size: of the image: batch, channels, then two or three sizes.
        align_corners: whether -1 and 1 are the centres of the first and the last pixel, or their outer edges.

    Returns:
        [batch, *the image's sizes, 2 or 3].
    """
    spatial = _as_list(size)[2:]
    if len(spatial) != theta.shape[1]:
        return NotImplemented
    axes: list[Tensor] = []
    for count in spatial:
        axis = _linspace(-1, 1, count, dtype=theta.dtype, device=theta.device)
        pixels = torch.ones_like(axis).sum()
        axes.append(axis if align_corners else axis * (pixels - 1) / pixels)
    grids = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([*reversed(grids), torch.ones_like(grids[0])], -1)  # x comes first
    mapped = points.reshape(1, -1, len(spatial) + 1) @ theta.transpose(1, 2)
    return mapped.reshape(theta.shape[0], *spatial, len(spatial))


def _max_pool1d(x: Tensor, kernel_size: Any, *args: Any, return_indices: bool = False, **options: Any) -> Tensor:
    """`max_pool1d` of a symbolic length; with places it keeps the length symbolic by itself."""
    if return_indices or not _is_symbolic(tuple(x.shape[-1:])):
        return NotImplemented
    if _is_symbolic(kernel_size):
        return _largest(x, kernel_size, *args, **options)
    return max_pool_of_row(x, kernel_size, *args, **options)


_CHECKED: Mapping[str, Callable[..., Any]] = {
    "max_pool1d": _max_pool1d,
}
_REPLACEMENTS: Mapping[str, Callable[..., Any]] = {
    "linspace": _linspace,
    "one_hot": _one_hot,
    "as_tensor": _as_tensor,
    "hann_window": _of_cosines(0.5, 0.5),
    "hamming_window": _hamming_window,
    "blackman_window": _of_cosines(0.42, 0.5, 0.08),
    "bartlett_window": _bartlett_window,
    "tril_indices": _tril_indices,
    "triu_indices": _triu_indices,
    "avg_pool1d": _average,
    "avg_pool2d": _average,
    "max_pool2d": _largest,
    "affine_grid": _affine_grid,
    "conv1d": group_convolutions.conv1d,
    "conv2d": group_convolutions.conv2d,
    "conv_transpose2d": group_convolutions.conv_transpose2d,
}
