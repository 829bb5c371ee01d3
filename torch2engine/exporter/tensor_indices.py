"""Indexing by a 0-d integer tensor, `x[i]`, as an operator that looks rows up.

Enters: a model while it is traced. Leaves: nothing; meanwhile `x[i]` is computed by the operator of `x[i.reshape(1)]`.
Separate because torch would turn the tensor into a number, which some versions refuse to trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch2engine.core.errors import ExportError

__all__ = ["TensorIndices"]

_ROWS = (torch.int8, torch.int16, torch.int32, torch.int64)  # uint8 is a mask


@dataclass(frozen=True)
class _Copy:
    """A row that PyTorch would give as a view: a write into it would be lost.

    Args:
        row: the row.
        version: how often it had been written to when it was made.
    """

    row: Tensor
    version: int

    def was_written(self) -> bool:
        return self.row._version != self.version


class TensorIndices(TorchFunctionMode):
    """While it is active, 0-d integer tensors are indices of the graph, for reading and for writing."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: list[_Copy] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace an access by a 0-d tensor; call any other function."""
        if func is Tensor.__getitem__ and _has_row_index(args[1]):
            row = _read(*args)
            self._copies.append(_Copy(row, row._version))
            return row
        if func is Tensor.__setitem__:
            self._copies = [copy for copy in self._copies if copy.row is not args[2]]  # `x[i] += 1` writes it back
            if _is_row_index(args[1]):
                return _write(*args)
        return func(*args, **(kwargs or {}))

    def require_no_lost_writes(self) -> None:
        """Refuse a model that has written into a row of another tensor.

        Raises:
            ExportError: it has.
        """
        if any(copy.was_written() for copy in self._copies):
            raise ExportError(
                "torch.export",
                got="a write into x[i], where i is a tensor",
                allowed="writes by assignment",
                fix="write x[i] = value, or x[i] += value",
            )


def _read(x: Tensor, index: Any) -> Any:
    """`x[index]`: first the rows that tensors choose, then the rest."""
    items = _items(index)
    dim = 0
    for place, item in enumerate(items):
        if item is Ellipsis:
            dim = x.ndim - sum(map(_dims_of, items[place + 1 :]))
        elif _is_row_index(item):
            before: list[Any] = [slice(None)] * dim
            x = x[(*before, _as_row(item))]
            items[place] = 0
            dim += 1
        else:
            dim += _dims_of(item)
    return x[tuple(items)]


def _write(x: Tensor, index: Tensor, value: Any) -> None:
    """`x[index] = value` for a single index."""
    x[_as_row(index)] = value


def _as_row(index: Tensor) -> Tensor:
    return index.reshape(1).long()


def _items(index: Any) -> list[Any]:
    return list(cast("tuple[Any, ...]", index)) if isinstance(index, tuple) else [index]


def _has_row_index(index: Any) -> bool:
    return any(map(_is_row_index, _items(index)))


def _is_row_index(item: Any) -> bool:
    return isinstance(item, Tensor) and item.ndim == 0 and item.dtype in _ROWS


def _dims_of(item: Any) -> int:
    """How many dimensions of the indexed tensor an item stands for."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    is_mask = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
    return item.ndim if is_mask else 1
