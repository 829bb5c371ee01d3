"""A lowered ONNX model → how many of its nodes are low, and which modules are not.

Enters: a typed or quantised model, and why nodes were kept. Leaves: a `PrecisionOutcome`. Apart from `outcome` because
it reads ONNX, and that one travels where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.tensor_types import tensor_types
from torch2engine.precision.graph.outcome import KeptModule, PrecisionOutcome

__all__ = ["account"]

# No arithmetic of their own, and what a type change itself consists of.
_NO_ARITHMETIC = frozenset({"Cast", "Constant", "QuantizeLinear", "DequantizeLinear", "Identity", "Shape", "Size"})


def account(
    model: Any, dtype: str, reasons: Mapping[str, str], attempts: Sequence[str], errors: Mapping[str, float] | None
) -> PrecisionOutcome:
    """Count a lowered model's nodes.

    Args:
        model: ModelProto.
        dtype: what was asked.
        reasons: why a node stayed in float32, by its name; equal reasons of one module are told once.
        attempts, errors: of the search.
    """
    import onnx

    low_types = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    graph = model.graph
    known = tensor_types(model)
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats = (onnx.TensorProto.FLOAT, *low_types)
    nodes = low = 0
    for node in graph.node:
        made = [known.get(name) for name in node.output]
        if node.op_type in _NO_ARITHMETIC or not any(kind in floats for kind in made):
            continue
        nodes += 1
        quantized = any(name in dequantized for name in node.input)
        low += quantized if dtype in ("int8", "fp8", "fp32") else any(kind in low_types for kind in made)
    of_node = node_modules(model)
    told: dict[tuple[str, str], int] = {}
    for name, reason in reasons.items():
        key = (of_node.get(name, ""), reason)
        told[key] = told.get(key, 0) + 1
    kept = tuple(KeptModule(module, count, reason) for (module, reason), count in sorted(told.items()))
    return PrecisionOutcome(
        dtype=dtype,
        nodes=nodes,
        low=low,
        kept=kept,
        attempts=tuple(attempts),
        errors=None if errors is None else errors,
    )
