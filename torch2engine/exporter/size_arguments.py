"""PyTorch's functions that take sizes as plain numbers, made to take sizes that follow a dynamic axis.

Enters: a model while it is traced. Leaves: nothing; meanwhile these functions are computed from others that keep sizes
symbolic. Separate because torch would turn such a size into a number, and so fix the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SymbolicSizeArguments"]


class SymbolicSizeArguments(TorchFunctionMode):
    """While it is active, functions of `_REPLACEMENTS` take symbolic sizes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a function that was given a symbolic size; call any other."""
        options: Mapping[str, Any] = kwargs or {}
        replacement = _REPLACEMENTS.get(getattr(func, "__name__", ""))
        if replacement is not None and any(_is_symbolic(value) for value in (*args, *options.values())):
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


_REPLACEMENTS: Mapping[str, Callable[..., Any]] = {
    "linspace": _linspace,
    "one_hot": _one_hot,
    "as_tensor": _as_tensor,
    "avg_pool1d": _average,
    "avg_pool2d": _average,
    "max_pool1d": _largest,
    "max_pool2d": _largest,
}
