"""A node of an ONNX graph → other nodes that compute the same result.

Enters: a node of onnx_ir, and what takes its place. Leaves: the changed graph. Separate because every such change keeps
the node's name as the beginning of the new ones, and the result's shape and type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["replace_node"]


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
