"""The shapes of an ONNX model's tensors, written back after a tool has lost them.

Enters: the model before and after a tool that keeps the names. Leaves: the model with its shapes. Separate because
ONNX's own inference can't name a dynamic size again that a Reshape has passed on, and later readers compare the names.
"""

from __future__ import annotations

from typing import Any

from torch2engine.onnx_graph.tensor_types import tensor_types

__all__ = ["restore_shapes"]


def restore_shapes(changed: Any, original: Any) -> None:
    """Write the shapes of the main graph's tensors from one model into another, in place.

    Args:
        changed: the model to write into, whose tensors of the same name have the same shape. Its types stay.
        original: the model that has the shapes.
    """
    types = tensor_types(changed)
    outputs = {name for node in changed.graph.node for name in node.output}
    del changed.graph.value_info[:]
    for value in original.graph.value_info:
        if value.name in outputs and types.get(value.name):
            changed.graph.value_info.add().CopyFrom(value)
            changed.graph.value_info[-1].type.tensor_type.elem_type = types[value.name]
