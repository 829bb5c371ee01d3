"""A lowered ONNX model → how many of its nodes are low, and which modules are not.

Enters: a cast or quantised model, and why nodes stayed in float32. Leaves: a `PrecisionOutcome`. Separate from
`precision_outcome` because it needs ONNX, and an outcome must not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch2engine.core.precision_outcome import KeptModule, PrecisionOutcome
from torch2engine.core.precisions import CAST_PRECISIONS, DEFAULT_PRECISION
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.tensor_types import cast_element_types, element_type, tensor_types

__all__ = ["count_nodes"]

# These have no arithmetic of their own, or are part of a type change.
_NO_ARITHMETIC = frozenset({"Cast", "Constant", "QuantizeLinear", "DequantizeLinear", "Identity", "Shape", "Size"})


def count_nodes(model: Any, precision: str, float32_reasons: Mapping[str, str]) -> PrecisionOutcome:
    """Count the nodes of a lowered model that compute with floating-point numbers, and the lowered ones among them.

    Args:
        model: ModelProto.
        precision: the requested dtype. After a cast, a node is lowered if it makes a tensor of 16 bits; after a
            quantisation, if it reads a dequantised tensor.
        float32_reasons: node name -> why it stayed in float32. Equal reasons of one module are reported once.
    """
    types = tensor_types(model)
    cast_types = cast_element_types()
    float_types = {element_type(DEFAULT_PRECISION), *cast_types}
    computing = [
        node
        for node in model.graph.node
        if node.op_type not in _NO_ARITHMETIC and any(types.get(name) in float_types for name in node.output)
    ]
    if precision in CAST_PRECISIONS:
        lowered_count = sum(any(types.get(name) in cast_types for name in node.output) for node in computing)
    else:
        makers = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
        dequantized = {name for node in makers for name in node.output}
        lowered_count = sum(any(name in dequantized for name in node.input) for node in computing)
    module_of_node = node_modules(model)
    counts = Counter((module_of_node.get(node, ""), reason) for node, reason in float32_reasons.items())
    return PrecisionOutcome(
        dtype=precision,
        nodes=len(computing),
        low=lowered_count,
        kept=tuple(KeptModule(module, count, reason) for (module, reason), count in sorted(counts.items())),
    )
