"""Sizes of dimensions as products: a whole number times symbols.

Enters: numbers, the names of axes and dimensions as ONNX writes them. Leaves: `Size`, which can be multiplied, divided
and compared. Separate because it is arithmetic that knows no operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ONE", "Size", "Symbol", "combined", "parse_size", "product"]


@dataclass(frozen=True, order=True)
class Symbol:
    """A size that is not known as a number. Symbols of one name are equal.

    Args:
        name: an axis, an expression, or the tensor and dimension that it is the size of.
        follows_axis: whether it may depend on the size of the analysed axis.
    """

    name: str
    follows_axis: bool = False


@dataclass(frozen=True)
class Size:
    """`factor` times all of `symbols`, which are sorted."""

    factor: int
    symbols: tuple[Symbol, ...] = ()

    @property
    def follows_axis(self) -> bool:
        """Whether it may depend on the size of the analysed axis."""
        return any(symbol.follows_axis for symbol in self.symbols)

    @property
    def is_number(self) -> bool:
        """Whether it is known as a number, which is then `factor`."""
        return not self.symbols

    def times(self, other: Size) -> Size:
        """The product."""
        factor = self.factor * other.factor
        return Size(factor, tuple(sorted((*self.symbols, *other.symbols))) if factor else ())

    def divided_by(self, other: Size) -> Size | None:
        """The quotient, or None where it is no such product."""
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Size(self.factor // other.factor, tuple(left))

    def __str__(self) -> str:
        names = [symbol.name for symbol in self.symbols]
        return "*".join(names if names and self.factor == 1 else [str(self.factor), *names])


ONE = Size(1)


def product(sizes: Iterable[Size]) -> Size:
    """Multiply sizes."""
    result = ONE
    for size in sizes:
        result = result.times(size)
    return result


def combined(operator: str, left: Size, right: Size) -> Size:
    """A size that an operator makes of two, under a name by which the same one is known again."""
    return Size(1, (Symbol(f"({left} {operator} {right})", left.follows_axis or right.follows_axis),))


def parse_size(text: str, axis: str) -> Size:
    """Read the name of a dimension, e.g. "batch", "2*batch" or "tokens - 1".

    Args:
        text: as ONNX has it.
        axis: the analysed axis.
    """
    factors = text.split("*")
    if not all(re.fullmatch(r"\w+", factor) for factor in factors):
        return Size(1, (Symbol(text, axis in re.findall(r"\w+", text)),))
    return product(Size(int(part)) if part.isdecimal() else Size(1, (Symbol(part, part == axis),)) for part in factors)
