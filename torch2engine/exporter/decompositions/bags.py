"""`embedding_bag`: sums, means or maxima of groups of rows of a table.

Enters: the arguments of one of its forms. Leaves: its results, by a product with a matrix that tells which row belongs
to which bag. Separate because torch.onnx writes a loop over the bags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["BAGS"]

_SUM, _MEAN, _MAX = range(3)


def embedding_bag(
    table: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduce the rows of each bag; an empty bag gives zeros. The other three results serve a backward pass.

    Memory grows with the number of bags times the number of indices.
    """
    bags = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], device=indices.device)
    # The bag of a place is the last one that begins there or before.
    begun = (bags.unsqueeze(-1) <= places).to(torch.int64)
    bag_of = begun.sum(0) - 1
    numbers = torch.arange(bags.shape[0], device=indices.device)
    member = numbers.unsqueeze(-1) == bag_of
    if padding_idx is not None and padding_idx != -1:
        padding_idx = padding_idx % table.shape[0]
        member = member & (indices != padding_idx)
    rows = table.index_select(0, indices)
    if mode == _MAX:
        result = torch.where(member.unsqueeze(-1), rows, -torch.inf).amax(1)
        result = torch.where(member.any(1, keepdim=True), result, 0.0)
    else:
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        weights = member.to(rows.dtype)
        result = weights @ rows
        if mode == _MEAN:
            result = result / weights.sum(1, keepdim=True).clamp(min=1.0)
    sizes = member.to(torch.int64).sum(1)
    return result, bag_of, sizes, torch.zeros_like(bags)


BAGS: Mapping[str, Callable[..., Any]] = {
    "embedding_bag": embedding_bag,
    "embedding_bag.padding_idx": embedding_bag,
    "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag,
}
