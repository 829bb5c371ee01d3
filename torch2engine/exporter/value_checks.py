"""Checks of values and sizes in a program, such as `torch._check`, are taken out: an engine can't stop on them.

Enters: a program. Leaves: the same one without them. Separate because what a check alone needs goes with it, such as
rows that are only counted. Such a count depends on values, and no engine could be made otherwise.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public name

__all__ = ["erase_value_checks"]

_CHECKS = frozenset(
    (
        "aten::_assert_scalar",
        "aten::_assert_async.msg",
        "aten::_assert_async",
        "aten::sym_constrain_range",
        "aten::sym_constrain_range_for_size",
    )
)


def erase_value_checks(program: torch.export.ExportedProgram) -> None:
    """Erase every check, and what nothing else needs, in place."""
    graph = program.graph_module.graph
    count = len(graph.nodes)
    needed_by_checks: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if _name(node) in _CHECKS or (node in needed_by_checks and not node.users and _has_no_effect(node)):
            needed_by_checks.update(node.all_input_nodes)
            graph.erase_node(node)
    if len(graph.nodes) < count:
        program.graph_module.recompile()


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return target.name() if isinstance(target, OpOverload) else ""


def _has_no_effect(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    return not (isinstance(node.target, OpOverload) and cast("Any", node.target)._schema.is_mutable)
