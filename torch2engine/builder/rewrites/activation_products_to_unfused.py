"""An ONNX model whose activations stand apart from the products after them, for a builder that fuses both wrongly.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because it is one fault of one flavour.
On an H200, TensorRT-RTX 1.6.1 fuses a linear layer that has a bias, its relu or gelu, and a product with anything:
`linear(x).relu() * 2` is 13 % to 98 % off at every size, in float32 and in float16. A zero that is added between
activation and product stops that fusion. It takes no time of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch2engine.onnx_graph.tensor_types import tensor_types
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["separate_activations"]

_ACTIVATIONS = ("Relu", "Gelu")
_LINEAR = ("Gemm", "MatMul")
_PRODUCT = "Mul"
# The builder removes these before it fuses, or looks through them.
_TRANSPARENT = ("Identity", "Dropout", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def separate_activations(model: Any, folder: Path) -> Any | None:
    """Add zero to the relu or gelu of every linear layer that is multiplied afterwards.

    No weight is read or renamed, so that a refit finds all of them.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where no product follows such an activation.
    """
    del folder
    operators = operators_of(model)
    if operators.isdisjoint(_ACTIVATIONS) or operators.isdisjoint(_LINEAR) or _PRODUCT not in operators:
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    parted = ir.from_proto(model)
    found = [node for node in parted.graph.all_nodes() if _is_fused_wrongly(node)]
    # A file from elsewhere need not tell its types.
    types = tensor_types(model) if any(node.outputs[0].dtype is None for node in found) else {}
    changes = [_add_zero(node, types) for node in found]
    return ir.to_proto(parted) if any(changes) else None


def _is_fused_wrongly(node: Any) -> bool:
    """Tell whether a node is the activation between a linear layer and a product."""
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type in _ACTIVATIONS
        and _comes_from_linear(node.inputs[0])
        and any(reader.op_type == _PRODUCT for reader in _readers(node.outputs[0]))
    )


def _comes_from_linear(value: Any) -> bool:
    """Tell whether a value is the result of a linear layer: of a Gemm, or of a MatMul and the Add of its bias."""
    node = _maker(value)
    if node is not None and node.op_type == "Add":
        return any(_is_linear(_maker(summand)) for summand in node.inputs)
    return _is_linear(node)


def _is_linear(node: Any) -> bool:
    return node is not None and node.op_type in _LINEAR


def _maker(value: Any) -> Any:
    """The node that makes a value, seen through transparent ones; None for an input or a weight."""
    node = value.producer()
    while node is not None and node.op_type in _TRANSPARENT:
        node = node.inputs[0].producer()
    return node


def _readers(value: Any) -> Iterator[Any]:
    """The nodes that read a value, seen through transparent ones."""
    for node in value.consumers():
        if node.op_type in _TRANSPARENT:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _add_zero(node: Any, types: dict[str, int]) -> bool:
    """Put an Add of zero between an activation and all that read it; tell whether its type is known."""
    import numpy as np
    import onnx_ir as ir
    from onnx_ir import tape

    activated = node.outputs[0]
    dtype = activated.dtype or (ir.DataType(types[activated.name]) if activated.name in types else None)
    if dtype is None or not dtype.is_floating_point():
        return False
    readers = list(activated.uses())
    record = tape.Tape()
    zero = record.op("Constant", [], attributes={"value": ir.tensor(np.zeros((), dtype.numpy()), dtype=dtype)})
    total = record.op("Add", [activated, zero])
    total.dtype = dtype
    total.shape = activated.shape
    for index, new in enumerate(record.nodes):
        new.name = f"{node.name}/plus_zero_{index}"  # messages and reports find the module by the node's name
    node.graph.insert_after(node, record.nodes)
    for reader, index in readers:
        reader.replace_input_with(index, total)
    return True
