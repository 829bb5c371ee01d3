"""onnxscript's optimiser, held to rules that change no answer.

Enters: the ir.Model of torch's exporter. Leaves: a smaller one. Beside `export` because which rules are right is a
matter of onnxscript's, not of the road.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import onnxscript.optimizer

__all__ = ["exact_rewrites", "optimize"]


def optimize(model: Any, rewrite: bool) -> None:
    """Make a model smaller.

    Args:
        model: ir.Model, changed in place.
        rewrite: by rewrite rules too; else constants alone are folded.
    """
    if rewrite:
        onnxscript.optimizer.optimize_ir(model)
        return
    onnxscript.optimizer.inline(model)
    onnxscript.optimizer.fold_constants(model)
    onnxscript.optimizer.remove_unused_nodes(model)


@contextmanager
def exact_rewrites() -> Generator[bool]:
    """Leave out the rewrite rules that take a constant near 0 for 0, or near 1 for 1.

    onnxscript 0.7 drops `+ 1e-8`, without which a norm of zeros divides by zero. Gives False where its rules can't be
    chosen.
    """
    rewriter = cast("Any", importlib.import_module("onnxscript.rewriter"))
    try:
        loose = {id(rule) for rule in importlib.import_module("onnxscript.rewriter.rules.common._no_op").rules}
        before = rewriter._DEFAULT_REWRITE_RULES
    except (ImportError, AttributeError):  # other versions
        yield False
        return
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in before if id(rule) not in loose)
    try:
        yield True
    finally:
        rewriter._DEFAULT_REWRITE_RULES = before
