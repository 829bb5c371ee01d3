"""torch.onnx's search for type promotions, on the results that the program already has.

Enters: nothing. Leaves: a context in which the search computes only what it changes. Separate because it alone knows
how torch.onnx searches. It runs the whole program anew on fake tensors, operator by operator. With a dynamic batch that
is a tenth of an export. But every node of a program holds its result, and a promotion changes only the nodes that it
adds or moves to another type. torch.onnx runs these by itself and writes down what they give.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import fx

__all__ = ["recorded_results_reused"]

_PASS = "torch.onnx._internal.fx.passes.type_promotion"
_METHODS = ("run_node", "_maybe_promote_node", "_set_current_node")  # of its interpreter
_RESULT = "val"  # where a node's metadata hold it


@contextmanager
def recorded_results_reused() -> Generator[None]:
    """Let torch.onnx take the results of unchanged operators from the program."""
    try:
        search: Any = importlib.import_module(_PASS)
        interpreter, find_rule = search._TypePromotionInterpreter, search.get_type_promotion_rule
    except (ImportError, AttributeError):  # other versions
        yield
        return
    if not all(hasattr(interpreter, name) for name in _METHODS):
        yield
        return
    before = interpreter.run_node

    def promote_and_reuse(self: Any, node: fx.Node) -> Any:
        rule = find_rule(node, self.type_promotion_table)
        if rule:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        if node.op == "call_function" and _RESULT in node.meta:
            return node.meta[_RESULT]
        return fx.Interpreter.run_node(self, node)

    interpreter.run_node = promote_and_reuse
    try:
        yield
    finally:
        interpreter.run_node = before
