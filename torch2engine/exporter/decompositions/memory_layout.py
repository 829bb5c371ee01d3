"""PyTorch's functions that look at how a tensor lies in memory.

Enters: a tensor of a model that is traced. Leaves: what the function gives, or a refusal. Separate because ONNX knows
no memory: a stride must follow from sizes, and a view by strides from the tensor's own elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cmp_to_key
from typing import Any, cast

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torch2engine.capture.source_lines import current_user_line
from torch2engine.core.errors import ExportError
from torch2engine.exporter.decompositions.size_bounds import is_fixed

__all__ = ["MEMORY_FUNCTIONS", "order_in_memory"]


def order_in_memory(x: Tensor) -> list[int] | None:
    """The dimensions of a tensor from the largest stride to the smallest; None where its memory has gaps."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=cmp_to_key(lambda one, other: _compared(strides[other], strides[one])))
    expected: Any = 1
    for dim in reversed(order):
        if not statically_known_true(x.shape[dim] == 1) and not statically_known_true(strides[dim] == expected):
            return None
        expected = expected * x.shape[dim]
    return order


def _compared(one: Any, other: Any) -> int:
    """1 or -1 for the larger or smaller of two strides; 0 where neither is for all sizes."""
    return int(statically_known_true(one > other)) - int(statically_known_true(one < other))


def _stride(x: Tensor, dim: int | None = None) -> Any:
    """`stride` as a product of sizes: an ONNX graph has no other trace of it."""
    known: Any = x.stride()
    order = order_in_memory(x)
    if all(map(is_fixed, known)) or order is None:
        return NotImplemented
    strides: list[Any] = [1] * x.dim()
    for outer, inner in zip(order[-2::-1], order[:0:-1], strict=True):
        strides[outer] = strides[inner] * x.shape[inner]
    return tuple(strides) if dim is None else strides[dim]


def _as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """`as_strided` of a tensor without gaps; its offset is counted from the tensor's first element.

    Raises:
        ExportError: the view may reach memory that is not in the tensor.
    """
    own: Any = x.storage_offset()
    start: Any = 0 if storage_offset is None else storage_offset - own
    last: Any = start + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    leaves_tensor = not statically_known_true(start >= 0) or statically_known_true(last >= x.numel())
    if order_in_memory(x) is None or leaves_tensor:
        raise ExportError(
            "torch.as_strided",
            got="a view that may reach memory between, before or behind the elements of its tensor",
            allowed="a tensor without gaps in memory, and a view of its own elements",
            fix="call .contiguous() before and use the strides of its result, or index the whole tensor",
            source=current_user_line(),
        )
    if storage_offset is None or statically_known_true(own == 0):
        return NotImplemented
    return cast("Any", x.clone()).as_strided(size, stride, start)


MEMORY_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "stride": _stride,
    "as_strided": _as_strided,
}
