"""The words of every error in the package, read in the source: "got" and "expected" are followed by nouns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.paths import PACKAGE

# A clause can't follow "got" or "expected". These words begin one.
CLAUSE_STARTS = (
    "it ",
    "its ",
    "is ",
    "are ",
    "was ",
    "were ",
    "can't ",
    "the engine ",
    "the model ",
    "TensorRT wants ",
)
A_CLASS = re.compile(r"a \{[^}]*__name__")  # "a int"; `kind_of` knows the article


def clauses(tree: ast.AST) -> Iterator[str]:
    """The texts that begin a clause, or put "a" before a word that the source does not know."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("got", "allowed"):
            for text in texts(node.value):
                if text.startswith(CLAUSE_STARTS) or A_CLASS.match(text):
                    yield f"{node.value.lineno}: {text}"


def texts(value: ast.expr) -> Iterator[str]:
    """The beginnings that an expression may have; what is formatted stands in braces."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        yield "".join(map(part_of_text, value.values))
    elif isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)
    elif isinstance(value, ast.BinOp):
        yield from texts(value.left)


def part_of_text(part: ast.expr) -> str:
    """A part of an f-string; what is formatted stands in braces."""
    if isinstance(part, ast.FormattedValue):
        return "{" + ast.unparse(part.value) + "}"
    return str(part.value) if isinstance(part, ast.Constant) else ""


def test_got_and_expected_are_followed_by_nouns() -> None:
    """A message reads "subject: got X; expected Y; fix", so X and Y are no sentences of their own."""
    found = [
        f"{path.relative_to(PACKAGE)}:{text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in clauses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("E('x', got='it is late', allowed='9 to 5')", 1),
        ("E('x', got=f'a {kind.__name__}', allowed='is early')", 2),
        ("E('x', got='its ' + what if late else 'a clock')", 1),
        ("E('x', got=f'an {kind}', allowed=f'{low}..{high}')", 0),
    ],
)
def test_clauses_are_seen_wherever_a_text_begins(source: str, count: int) -> None:
    """The search is not blind: it sees constants, formatted texts, sums and both sides of a choice."""
    assert len(list(clauses(ast.parse(source)))) == count
