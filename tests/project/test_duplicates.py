"""No run of six lines stands twice in the package, but for those that are declared here with their reason."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE

RUN = 6

# A line of a run that may stand twice -> why it does.
DECLARED = {
    "fields = ManifestFields(": "the two kinds of artifact hand on the same keyword arguments",
    "cache_key: str | None": "the arguments of deploy(), as types for its callers and as one value; tests compare both",
}


def code_lines(text: str) -> list[tuple[int, str]]:
    """Number and text of every line that counts.

    Passed over are blank lines, comments, docstrings, imports, lone punctuation, and parameter lists: several forms of
    one operator, or a function and the method that hands on to it, rightly take the same arguments.
    """
    passed_over: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            passed_over.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            passed_over.update(range(node.lineno, node.body[0].lineno))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in passed_over]
    return [(number, line) for number, line in lines if not line.startswith("#") and any(map(str.isalnum, line))]


def repeated(files: Iterable[Path]) -> list[str]:
    """Where each run of six lines stands that stands twice, the first run of an overlapping series only."""
    places: defaultdict[tuple[str, ...], list[tuple[str, int, int]]] = defaultdict(list)
    for path in files:
        lines = code_lines(path.read_text(encoding="utf-8"))
        for start in range(len(lines) - RUN + 1):
            run = tuple(line for _, line in lines[start : start + RUN])
            places[run].append((path.name, start, lines[start][0]))
    found: dict[tuple[tuple[str, int], ...], str] = {}
    for run, where in places.items():
        apart = len({(name, start) for name, start, _ in where}) > 1
        before = tuple((name, start - 1) for name, start, _ in where)
        if apart and not DECLARED.keys() & set(run) and before not in found:
            found[tuple((name, start) for name, start, _ in where)] = " ~ ".join(f"{n}:{line}" for n, _, line in where)
        elif apart and before in found:
            found[tuple((name, start) for name, start, _ in where)] = ""
    return sorted(filter(None, found.values()))


def test_no_code_stands_twice_in_the_package() -> None:
    """Logic that is the same is written once."""
    assert repeated(sorted(PACKAGE.rglob("*.py"))) == []


BODY = "\n".join(f"    x{number} = call({number})" for number in range(RUN))


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        (f"def f():\n{BODY}\n", f"import os\n\ndef g():\n    # why\n{BODY}\n", 1),
        (f"def f():\n{BODY}\n    return 1\n", f"def f():\n{BODY}\n    return 1\n", 1),
        (f"def f():\n{BODY}\n", f"def f():\n{BODY.replace('call(3)', 'call(4)')}\n", 0),
        ('"""' + BODY + '"""\n', '"""' + BODY + '"""\n', 0),
    ],
)
def test_a_planted_copy_is_found_and_prose_is_not_one(tmp_path: Path, first: str, second: str, count: int) -> None:
    """Comments and other functions around it don't hide a copy; lines that differ, and docstrings, are none."""
    (tmp_path / "one.py").write_text(first)
    (tmp_path / "two.py").write_text(second)
    assert len(repeated(sorted(tmp_path.glob("*.py")))) == count
