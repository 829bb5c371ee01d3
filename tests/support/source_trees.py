"""The syntax tree of a source text, parsed and walked once for all rules that look at it.

Enters: a text, or a tree. Leaves: its tree, or all nodes in it. Separate because parsing and walking a file take longer
than any rule, and every rule does both.
"""

from __future__ import annotations

import ast
import functools

__all__ = ["nodes_of", "tree_of"]


# Rules look at one file after another, and the trees of all would take much memory.
@functools.lru_cache(maxsize=2)
def tree_of(text: str) -> ast.Module:
    """The tree of a source text."""
    return ast.parse(text)


@functools.lru_cache(maxsize=2)
def nodes_of(tree: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes of a tree, in the order of `ast.walk`."""
    return tuple(ast.walk(tree))
