"""Which test files `make test-fast` leaves out: those whose tests take seconds.

Enters: a test file's text. Leaves: the names in it that stand for an export, a trained model, an engine or a Python
process. Separate because the choice follows from what a file uses, so that nobody has to mark anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Functions and fixtures by which tests export, train, build, or start a Python process.
_NAMES = {
    *("build", "check", "deploy", "deployed", "export", "export_onnx", "exported", "exported_once", "outcome_of"),
    *("GraphCompiler", "build_here", "compile_backend", "executable", "explain", "run_fork", "run_python"),
    *("run_scripts", "trained"),
}


def slow_names(text: str) -> set[str]:
    """The names of what is slow that a test file imports, calls, or takes as a fixture; words in strings are none."""
    return _NAMES & set(_names(ast.parse(text)))


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
