"""A Python file → its mutants: copies with one small fault each.

Enters: a file's text. Leaves: `Mutation`s, each with the text that replaces a piece of a line. Apart from `mutants`
because nothing here runs anything.

A mutant that no test notices shows a promise that no test holds. Texts are left alone, since errors have tests of their
own, and so are annotations. So are the flags of a dataclass, which the type checker holds, and `strict` of zip: it
guards against slips of the code itself, and no input reaches it.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Mutation", "mutations_of"]

_COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_DELETED = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Args:
        line: the first line of what is replaced, from 1.
        column: its first byte in that line.
        end_line, end_column: behind its last byte.
        kind: of the fault, e.g. "comparison".
        text: what takes its place.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    kind: str
    text: str

    def apply(self, source: str) -> str:
        """The file's text with the fault."""
        lines = source.encode().splitlines(keepends=True)
        start = sum(map(len, lines[: self.line - 1])) + self.column
        end = sum(map(len, lines[: self.end_line - 1])) + self.end_column
        data = b"".join(lines)
        return (data[:start] + self.text.encode() + data[end:]).decode()


def mutations_of(source: str) -> list[Mutation]:
    """Every mutation of a file, in the order of its lines."""
    found: list[Mutation] = []
    for node in _code(ast.parse(source)):
        for mutate in (_comparison, _boolean, _number, _arithmetic, _negation, _deletion, _result):
            for kind, place, text in mutate(node):
                assert place.end_lineno is not None and place.end_col_offset is not None
                end = (place.end_lineno, place.end_col_offset)
                found.append(Mutation(place.lineno, place.col_offset, *end, kind, text))
    return sorted(found, key=lambda one: (one.line, one.column, one.kind, one.text))


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide something: no texts, annotations, imports, or lists of public names."""
    for name, field in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_params"):
            continue
        for node in field if isinstance(field, list) else [field]:
            if not isinstance(node, ast.AST) or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if name == "decorator_list" and ast.unparse(node).startswith("dataclass("):
                continue
            yield node
            yield from _code(node)


Found = Iterator["tuple[str, Any, str]"]


def _changed(node: Any, change: Callable[[Any], object]) -> str:
    """The text of a node after a change of its copy; in brackets, since it may stand in another expression."""
    other = copy.deepcopy(node)
    change(other)
    return f"({ast.unparse(other)})"


def _comparison(node: ast.AST) -> Found:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            swapped = _COMPARISONS[type(operator)]()
            yield "comparison", node, _changed(node, lambda other: other.ops.__setitem__(index, swapped))  # noqa: B023


def _boolean(node: ast.AST) -> Found:
    if isinstance(node, ast.BoolOp):
        swapped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", node, _changed(node, lambda other: setattr(other, "op", swapped))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", node, str(not node.value)


def _number(node: ast.AST) -> Found:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "boundary", node, repr(node.value + 1)


def _arithmetic(node: ast.AST) -> Found:
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        swapped = _ARITHMETIC[type(node.op)]()
        yield "arithmetic", node, _changed(node, lambda other: setattr(other, "op", swapped))


def _negation(node: ast.AST) -> Found:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node, f"({ast.unparse(node.operand)})"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield "not", node.test, f"(not ({ast.unparse(node.test)}))"


def _deletion(node: ast.AST) -> Found:
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))
    is_write = isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple))
    if is_call or is_write or isinstance(node, _DELETED):
        yield "deletion", node, "pass"


def _result(node: ast.AST) -> Found:
    # None instead of False is no fault; True instead of False is one of the constants.
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) not in ("None", "False"):
        yield "return", node, "return None"
