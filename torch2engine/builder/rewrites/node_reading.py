"""An ONNX model as its nodes and values: what a node is, and who reads a value.

Enters: a model, or nodes and values of onnx_ir. Leaves: that model in memory, or answers to two questions. Separate
because every change around attention needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["is_operator", "only_user", "opset_of", "read_model", "write_model"]


def read_model(model: Any, folder: Path) -> Any:
    """The ir.Model of a ModelProto whose external data lie in a folder; none are read."""
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    read = ir.from_proto(model)
    ir.external_data.set_base_dir(read.graph, folder)
    return read


def write_model(model: Any) -> Any:
    """The ModelProto of an ir.Model."""
    import onnx_ir

    ir: Any = onnx_ir
    return ir.to_proto(model)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a ModelProto."""
    return max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


def is_operator(node: Any | None, *operators: str) -> bool:
    """Tell whether a node is one of ONNX's own operators; None, the producer of an input, is none."""
    return node is not None and node.op_type in operators and node.domain in ("", "ai.onnx")


def only_user(value: Any) -> Any:
    """The one node that reads a value; None if several do, or if the caller gets it."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None
