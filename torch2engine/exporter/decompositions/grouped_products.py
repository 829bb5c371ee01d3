"""Matrix products of rows in groups, each group with a matrix of its own, as in mixtures of experts.

Enters: the arguments of one operator. Leaves: its result, from one product for each group over all rows. Separate
because the groups' sizes are values, and an engine's shapes can't follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["GROUPED_PRODUCTS", "grouped_products_of_transformers"]


def _grouped_rows(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """The rows before each offset times the matrix of that offset.

    Args:
        x: [rows, inputs], in the order of the groups.
        weight: [groups, inputs, outputs].
        offs: [groups], the first row behind each group.
    """
    rows = torch.arange(x.shape[0], dtype=offs.dtype, device=x.device)
    products: list[Tensor] = []
    for group in range(weight.shape[0]):
        inside = rows < offs[group]
        if group:
            inside = inside & (rows >= offs[group - 1])
        products.append(torch.where(inside.unsqueeze(-1), x, 0.0) @ weight[group])
    return torch.stack(products).sum(0)


def _grouped_mm(
    x: Tensor,
    weight: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`_grouped_mm` of rows in groups; its other forms have no decomposition here."""
    if x.dim() != 2 or weight.dim() != 3 or offs is None or bias is not None:
        return NotImplemented
    result = _grouped_rows(x, weight, offs)
    return result if out_dtype is None else result.to(out_dtype)


GROUPED_PRODUCTS: Mapping[str, Callable[..., Any]] = {"_grouped_mm": _grouped_mm}


def grouped_products_of_transformers() -> dict[Any, Callable[..., Any]]:
    """Return {operator: decomposition} for the operator that transformers registers once it is imported."""
    packet: Any = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return {} if packet is None else {packet.default: _grouped_rows}
