"""An ONNX graph and the layers of its engine → which attention is fused, and why other attention is not.

Enters: an ONNX model, and TensorRT's layers where there is an engine. Leaves: `AttentionOutcome` values. Separate from
`engine_findings` because a report tells it of every model, and a finding only of what can be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch2engine.builder.rewrites.attention_to_one_node import attention_obstacles
from torch2engine.core.precision_report import AttentionOutcome
from torch2engine.onnx_graph.attention_blocks import find_attention_blocks
from torch2engine.precision.graph.engine_findings import unfused_blocks
from torch2engine.precision.graph.engine_layers import Layer

__all__ = ["attention_outcomes"]

_OWN_CHOICE = "TensorRT has chosen kernels of their own for its products"


def attention_outcomes(model: Any, folder: Path, layers: Sequence[Layer]) -> tuple[AttentionOutcome, ...]:
    """Tell how every attention of a model is computed.

    Args:
        model: a ModelProto, with or without weights; it loses the shapes that name unknown sizes.
        folder: where its external data lie.
        layers: of its engine; empty without one.
    """
    blocks = find_attention_blocks(model)
    unfused = unfused_blocks(blocks, layers) if layers else blocks
    if not unfused:
        return tuple(AttentionOutcome(block.module, True) for block in blocks)
    obstacles = attention_obstacles(model, folder)
    if not layers:
        return tuple(AttentionOutcome(block.module, None, obstacles.get(block.softmax, "")) for block in blocks)
    return tuple(
        AttentionOutcome(block.module, False, obstacles.get(block.softmax) or _OWN_CHOICE)
        if block in unfused
        else AttentionOutcome(block.module, True)
        for block in blocks
    )
