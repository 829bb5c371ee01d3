"""PyTorch's dtypes and layouts ↔ the names that signatures and messages use.

Enters: a torch.dtype, a torch.layout, or a name such as "float16". Leaves: the other one. Separate because every layer
that knows PyTorch needs these names, and this is the lowest of them.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["dtype_name", "layout_name", "torch_dtype"]


@cache
def torch_dtype(name: str) -> torch.dtype:
    """Return the torch.dtype of a signature's dtype name.

    Raises:
        AttributeError, ValueError: PyTorch has no dtype of this name.

    >>> torch_dtype("bfloat16")
    torch.bfloat16
    """
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return a signature's name of a torch.dtype.

    >>> dtype_name(torch.float16)
    'float16'
    """
    return _without_prefix(dtype)


def layout_name(layout: torch.layout) -> str:
    """Return the name of a layout as messages spell it.

    >>> layout_name(torch.sparse_coo)
    'sparse_coo'
    """
    return _without_prefix(layout)


def _without_prefix(value: object) -> str:
    return str(value).removeprefix("torch.")
