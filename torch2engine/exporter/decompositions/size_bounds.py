"""The least and the largest value that a size may have.

Enters: a number, or a symbolic size of a program. Leaves: its bounds. Separate because some decompositions choose their
form by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

__all__ = ["highest", "is_fixed", "larger", "lowest", "product_is_at_most", "smaller"]


def is_fixed(size: Any) -> bool:
    """Tell whether a size is a number, and not symbolic."""
    return isinstance(size, int)


def larger(a: Any, b: Any) -> Any:
    """The larger of two sizes, symbolic or not."""
    return cast("Any", torch.sym_max)(a, b)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two sizes, symbolic or not."""
    return cast("Any", torch.sym_min)(a, b)


def lowest(size: Any) -> int | None:
    """The least value; None where there is no bound."""
    return size if isinstance(size, int) else _as_int(_bounds(size).lower)


def highest(size: Any) -> int | None:
    """The largest value; None where there is no bound."""
    return size if isinstance(size, int) else _as_int(_bounds(size).upper)


def product_is_at_most(sizes: Sequence[Any], limit: int) -> bool:
    """Tell whether a product of sizes has a bound, and keeps to a limit."""
    product = 1
    for size in sizes:
        most = highest(size)
        if most is None:
            return False
        product *= most
    return product <= limit


def _bounds(size: Any) -> Any:
    symbolic: Any = size.node
    return symbolic.shape_env.bound_sympy(symbolic.expr)


def _as_int(bound: Any) -> int | None:
    return int(bound) if bound.is_integer and bound.is_finite else None
