"""onnxscript's optimiser, held to rules that change no answer.

Enters: the ir.Model of torch's exporter. Leaves: a smaller one. Separate because it depends on onnxscript's version
which of its rules are exact.
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
        rewrite: apply rewrite rules too; otherwise only constants are folded.
    """
    if rewrite:
        onnxscript.optimizer.optimize_ir(model)
        return
    onnxscript.optimizer.inline(model)
    onnxscript.optimizer.fold_constants(model)
    onnxscript.optimizer.remove_unused_nodes(model)


@contextmanager
def exact_rewrites() -> Generator[bool]:
    """Leave out the rewrite rules that treat a constant near 0 as 0, or near 1 as 1.

    onnxscript 0.7 drops `+ 1e-8`, without which a norm of zeros divides by zero.

    Returns:
        False where this onnxscript's rules can't be chosen: then none may be applied.
    """
    rewriter = cast("Any", importlib.import_module("onnxscript.rewriter"))
    try:
        inexact = {id(rule) for rule in importlib.import_module("onnxscript.rewriter.rules.common._no_op").rules}
        all_rules = rewriter._DEFAULT_REWRITE_RULES
    except (ImportError, AttributeError):  # other versions
        yield False
        return
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in all_rules if id(rule) not in inexact)
    try:
        yield True
    finally:
        rewriter._DEFAULT_REWRITE_RULES = all_rules
