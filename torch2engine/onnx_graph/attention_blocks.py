"""An ONNX graph → its attention blocks: a softmax between two matrix products.

Enters: a ModelProto. Leaves: the names of the nodes of each block. Separate because whoever reads the layers of an
engine knows nodes by name alone, and whoever fuses attention rewrites the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch2engine.onnx_graph.node_origins import origin_of

__all__ = ["AttentionBlock", "find_attention_blocks"]

_PRODUCTS = ("MatMul", "Gemm", "Einsum")
# What may stand between a product and the softmax: scale, mask, cast, quantisation and layout.
_BETWEEN = (
    *("Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear"),
)
_MOST_BETWEEN = 8


@dataclass(frozen=True)
class AttentionBlock:
    """One attention.

    Args:
        scores: the name of the product of queries and keys.
        softmax: the name of the softmax.
        result: the name of the product of its weights and the values.
        module: the torch module's path.
    """

    scores: str
    softmax: str
    result: str
    module: str


def find_attention_blocks(model: Any) -> tuple[AttentionBlock, ...]:
    """Find every softmax of the main graph that stands between two matrix products.

    Args:
        model: a ModelProto; its weights may be missing.
    """
    nodes = list(model.graph.node)
    if not any(node.op_type == "Softmax" for node in nodes):
        return ()
    producer = {output: node for node in nodes for output in node.output}
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def before(node: Any) -> list[Any]:
        return [producer[name] for name in node.input if name in producer]

    def after(node: Any) -> list[Any]:
        return [user for name in node.output for user in users.get(name, ())]

    found: list[AttentionBlock] = []
    for node in nodes:
        if node.op_type != "Softmax":
            continue
        scores = _nearest_product(node, before)
        result = _nearest_product(node, after)
        if scores is not None and result is not None:
            found.append(AttentionBlock(scores.name, node.name, result.name, origin_of(node).module))
    return tuple(found)


def _nearest_product(node: Any, neighbours: Callable[[Any], Iterable[Any]]) -> Any | None:
    """The nearest matrix product in one direction; None if something else than `_BETWEEN` is in the way."""
    level = list(neighbours(node))
    for _ in range(_MOST_BETWEEN):
        product = next((one for one in level if one.op_type in _PRODUCTS), None)
        if product is not None:
            return product
        level = [other for one in level if one.op_type in _BETWEEN for other in neighbours(one)]
    return None
