"""Sizes that follow from axes, such as "past + new" or "2*n".

Enters: the text of an expression. Leaves: its value for given sizes, whether these are numbers, arrays or symbols.
Separate because only a small part of Python's arithmetic is allowed: every size must grow with its axes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["SizeExpression", "parse_size_expression"]


def _add(left: Any, right: Any) -> Any:
    return left + right


def _subtract(left: Any, right: Any) -> Any:
    return left - right


def _multiply(left: Any, right: Any) -> Any:
    return left * right


def _divide(left: Any, right: Any) -> Any:
    return left // right


_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: _subtract,
    ast.Mult: _multiply,
    ast.FloorDiv: _divide,
}


@dataclass(frozen=True)
class SizeExpression:
    """A size as a function of axes.

    Args:
        text: in one spelling for each expression, e.g. ``"past + new"``.
        axes: the names in it.
        root: its syntax tree.
    """

    text: str
    axes: frozenset[str]
    root: ast.expr

    def value(self, sizes: Mapping[str, Any]) -> Any:
        """The size for these sizes of the axes.

        >>> parse_size_expression("2*n + 1").value({"n": 4})
        9
        """
        return _value(self.root, sizes)

    def fixed(self, sizes: Mapping[str, int]) -> SizeExpression | int:
        """The expression with these axes as numbers; a number where no axis is left.

        >>> parse_size_expression("past + new").fixed({"new": 1}).text
        'past + 1'
        """
        if self.axes <= sizes.keys():
            return self.value(sizes)
        text = re.sub(r"[^\W\d]\w*", lambda name: str(sizes.get(name[0], name[0])), self.text)
        return parse_size_expression(text)


@cache
def parse_size_expression(text: str) -> SizeExpression:
    """Read an expression over axis names.

    Args:
        text: sums of axes and numbers, multiples, differences from a number, and floor division by a number.

    Raises:
        ValueError: it is none; the message says what can be written.

    >>> parse_size_expression("past+new").text
    'past + new'
    """
    try:
        root = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _refusal(text) from None
    names: set[str] = set()
    _check(root, text, names)
    if not names:
        raise _refusal(text)
    return SizeExpression(ast.unparse(root), frozenset(names), root)


def _check(node: ast.expr, text: str, names: set[str]) -> None:
    """Refuse all but a growing function of the axes, and collect their names."""
    if isinstance(node, ast.Name):
        names.add(node.id)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        first = _is_number(node.left)
        second = _is_number(node.right)
        if isinstance(node.op, ast.Mult) and not (first or second):
            raise _refusal(text)
        if isinstance(node.op, (ast.Sub, ast.FloorDiv)) and not second:
            raise _refusal(text)
        for side in (node.left, node.right):
            _check(side, text, names)
    elif not _is_number(node):
        raise _refusal(text)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value >= 1


def _refusal(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no size: write a sum of axes, with positive whole numbers as factors, terms or divisors, "
        "e.g. 'past + new', '2*n', 'n - 1' or 'n // 4'"
    )


def _value(node: ast.expr, sizes: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    assert isinstance(node, ast.Constant)
    return node.value
