"""onnxscript's optimiser, held to rules that change no answer.

Enters: the ir.Model of torch's exporter. Leaves: a smaller one. Separate because it depends on onnxscript's version
which of its rules are exact.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import onnxscript.optimizer

from torch2engine.exporter.computed_constants import compute_constants

__all__ = ["exact_rewrites", "optimize"]


def optimize(model: Any, rewrite: bool) -> None:
    """Make a model smaller.

    Args:
        model: ir.Model, changed in place.
        rewrite: apply rewrite rules too; otherwise only constants are folded.
    """
    if rewrite:
        onnxscript.optimizer.optimize_ir(model)
    else:
        onnxscript.optimizer.inline(model)
        onnxscript.optimizer.fold_constants(model)
        onnxscript.optimizer.remove_unused_nodes(model)
    compute_constants(model)


@contextmanager
def exact_rewrites(folds_norms: bool = True) -> Generator[bool]:
    """Leave out the rewrite rules that treat a constant near 0 as 0, or near 1 as 1; make the others quick.

    onnxscript 0.7 drops `+ 1e-8`, without which a norm of zeros divides by zero.

    Args:
        folds_norms: whether a BatchNorm may become part of the product before it.

    Returns:
        False where this onnxscript's rules can't be chosen: then none may be applied.
    """
    rewriter = cast("Any", importlib.import_module("onnxscript.rewriter"))
    try:
        inexact = _rules_of("_no_op") | (set[int]() if folds_norms else _rules_of("_fuse_batchnorm"))
        all_rules = rewriter._DEFAULT_REWRITE_RULES
    except (ImportError, AttributeError):  # other versions
        yield False
        return
    rewriter._DEFAULT_REWRITE_RULES = tuple(_node_first(rule) for rule in all_rules if id(rule) not in inexact)
    try:
        yield True
    finally:
        rewriter._DEFAULT_REWRITE_RULES = all_rules


def _rules_of(file: str) -> set[int]:
    """The ids of the rules in a file of onnxscript's.

    Raises:
        ImportError, AttributeError: this version has others.
    """
    return {id(rule) for rule in importlib.import_module(f"onnxscript.rewriter.rules.common.{file}").rules}


class _NodeFirst:
    """The matcher of a rule, which is asked about nodes of one operator only.

    onnxscript 0.7 asks every rule about every node. Its matcher then sets up a match before it compares the first node.
    For a pattern that ends in several nodes, it even lists the whole graph. In a graph of 2,000 nodes that took half of
    an export, and the other patterns a tenth.

    Args:
        matcher: onnxscript's.
        operator: the type of the first node in which the pattern ends.
    """

    def __init__(self, matcher: Any, operator: str) -> None:
        self._matcher = matcher
        self._operator = operator

    def match(self, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        """What the matcher finds; None for a node of another operator."""
        return self._matcher.match(model, graph, node, **options) if node.op_type == self._operator else None


def _node_first(rule: Any) -> Any:
    """The rule, or one that finds the same matches without a look at nodes of other operators."""
    try:
        identifier = rule._matcher.pattern.output_nodes[0].op_identifier()
    except (AttributeError, IndexError):  # other versions
        return rule
    if identifier is None:  # the pattern ends in any of several operators
        return rule
    quick = copy.copy(rule)
    quick._matcher = _NodeFirst(rule._matcher, identifier[1])
    return quick
