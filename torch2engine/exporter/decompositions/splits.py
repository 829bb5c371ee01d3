"""Splits into parts whose sizes follow a dynamic axis, as slices.

Enters: the arguments of one operator. Leaves: its parts. Separate because torch.onnx makes a sequence of such parts,
which no TensorRT has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import SymInt, Tensor

__all__ = ["SPLITS"]


def _split(x: Tensor, split_size: int | SymInt, dim: int = 0) -> list[Tensor]:
    """`split.Tensor`: parts of one size; the last one may be smaller."""
    if not isinstance(split_size, SymInt):
        return NotImplemented
    size: Any = x.shape[dim]
    # torch.export fixed the number of parts, which was proved for every size.
    count = int((size + split_size - 1) // split_size)
    starts = [index * split_size for index in range(count)]
    ends = [*starts[1:], size]
    return [x.narrow(dim, start, end - start) for start, end in zip(starts, ends, strict=True)]


def _split_with_sizes(x: Tensor, split_sizes: Sequence[int | SymInt], dim: int = 0) -> list[Tensor]:
    """`split_with_sizes`: parts of these sizes."""
    if not any(isinstance(size, SymInt) for size in split_sizes):
        return NotImplemented
    starts = [0, *accumulate(split_sizes)]
    return [x.narrow(dim, start, size) for start, size in zip(starts, split_sizes, strict=False)]


SPLITS: Mapping[str, Callable[..., Any]] = {
    "split.Tensor": _split,
    "unsafe_split.Tensor": _split,
    "split_with_sizes": _split_with_sizes,
    "unsafe_split_with_sizes": _split_with_sizes,
}
