"""A node of an ONNX graph → other nodes that compute the same result.

Enters: a node of onnx_ir and what takes its place, or a model whose nodes of one operator are looked at. Leaves: the
changed graph. Separate because every such change keeps the node's name as the beginning of the new ones, and the
result's shape and type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch2engine.onnx_graph.walk import operators_of

__all__ = ["replace_node", "replace_nodes_of"]


def replace_nodes_of(model: Any, operator: str, replace: Callable[[Any], bool]) -> Any | None:
    """Replace the nodes of one of ONNX's own operators. Most models lack it, and are not read then.

    Args:
        model: a ModelProto.
        operator: as the nodes call it.
        replace: puts something else in the place of a node, or says False.

    Returns:
        another ModelProto; None where nothing is replaced.
    """
    if operator not in operators_of(model):
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    changed = ir.from_proto(model)
    nodes = [node for node in changed.graph.all_nodes() if node.domain in ("", "ai.onnx") and node.op_type == operator]
    are_replaced = [replace(node) for node in nodes]
    return ir.to_proto(changed) if any(are_replaced) else None


def replace_node(node: Any, replacements: Sequence[Any], result: Any, label: str) -> None:
    """Put other nodes in the place of a node with one output.

    Args:
        node: of a graph.
        replacements: of no graph yet, in an order in which they can run.
        result: the value of the last one that takes the place of the node's output.
        label: of the change; messages and reports find the module by the node's name before it.
    """
    import onnx_ir as ir  # only here: it takes long to load

    for index, new in enumerate(replacements):
        new.name = f"{node.name}/{label}_{index}"
    replaced = node.outputs[0]
    result.shape = replaced.shape
    result.type = replaced.type
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], replacements, [replaced], [result])
