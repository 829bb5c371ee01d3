"""Which nodes of torch's program make sizes that depend on values.

Enters: a node with its fake value. Leaves: yes or no. Separate because a whole engine is refused at such a node, and a
graph that is cut into parts leaves it in PyTorch.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves

__all__ = ["makes_free_size"]


def makes_free_size(node: fx.Node) -> bool:
    """Whether a tensor of a node's result has a size that depends on values, and no tensor that the node takes has one.

    Nodes that only pass such a size on do not count.
    """
    return _has_free_size(node) and not any(map(_has_free_size, node.all_input_nodes))


def _has_free_size(node: fx.Node) -> bool:
    """Whether a tensor that the node makes has a size that no input's shape decides.

    A view's place in memory may depend on values, such as the place of one row.
    """
    values: list[object] = tree_leaves(node.meta.get("val"))
    return any(isinstance(value, torch.Tensor) and bool(free_unbacked_symbols(value.shape)) for value in values)
