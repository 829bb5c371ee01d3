"""Nodes of an ONNX graph that no input decides → tensors, computed once by PyTorch.

Enters: the ir.Model of torch's exporter. Leaves: a smaller one. Separate because onnxscript computes only what is
small. The masks of shifted windows are not: their many little nodes run in every call, and TensorRT-RTX 1.6.1 fuses
attention only where mask and bias are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters

from torch2engine.capture.weight_program import WEIGHT_OPERATORS

__all__ = ["attribute_value", "compute_constants", "readable_tensor"]

_LARGEST = 2**24  # bytes; a larger result is not worth its place in the file
_WIDEST = 2  # bytes of an element, as masks mostly have
# Their results are read as fast from the smaller input; as a tensor they would go through memory.
_EXPANDING = ("ConstantOfShape", "Expand")
# What PyTorch computes in another way for integers.
_FLOAT_ARITHMETIC = ("Div", "Pow", "Reciprocal", "Sqrt", "ReduceMean", "ReduceSum", "ReduceL2")

_Inputs: TypeAlias = "Sequence[Any]"
_Attributes: TypeAlias = "Mapping[str, Any]"


def _constant_of_shape(inputs: _Inputs, attributes: _Attributes) -> torch.Tensor:
    value = attributes.get("value")
    filling = torch.zeros(1) if value is None else _constant_tensor(value)
    return filling.reshape(()).expand([int(size) for size in inputs[0]])


def _scatter(inputs: _Inputs, attributes: _Attributes) -> torch.Tensor:
    """ScatterND: the last axis of the indices holds places along the first axes of the data."""
    data, indices, updates = inputs
    if attributes.get("reduction", "none") != "none":
        raise ValueError("a sum at the places")
    return data.index_put(tuple(indices.unbind(-1)), updates)


def _where(inputs: _Inputs, attributes: _Attributes) -> torch.Tensor:
    del attributes
    condition, chosen, other = inputs
    return torch.where(condition, chosen, other)


_OPERATORS: Mapping[str, Callable[[_Inputs, _Attributes], torch.Tensor]] = {
    **{name: compute for name, compute in WEIGHT_OPERATORS.items() if not name.startswith(("Folded", "NormScale"))},
    "And": lambda inputs, _: torch.logical_and(*inputs),
    "ConstantOfShape": _constant_of_shape,
    "Equal": lambda inputs, _: torch.eq(*inputs),
    "Greater": lambda inputs, _: torch.gt(*inputs),
    "GreaterOrEqual": lambda inputs, _: torch.ge(*inputs),
    "Less": lambda inputs, _: torch.lt(*inputs),
    "LessOrEqual": lambda inputs, _: torch.le(*inputs),
    "Not": lambda inputs, _: torch.logical_not(*inputs),
    "Or": lambda inputs, _: torch.logical_or(*inputs),
    "ScatterND": _scatter,
    "Where": _where,
}


@torch.no_grad()
def compute_constants(model: Any) -> None:
    """Compute the nodes of the main graph that depend on constants alone, and put tensors in their place.

    Args:
        model: ir.Model, changed in place. What is an input of it, or a parameter for a refit, is no constant.
    """
    graph = model.graph
    known = _Known(graph)
    gone = _replaceable([node for node in graph if known.compute(node)], graph)
    for value in [node.outputs[0] for node in gone]:
        if any(use.node not in gone for use in value.uses()):
            _replace(graph, value, known.tensors[value])
    graph.remove(list(gone), safe=True)
    graph.remove([node for node in graph if node.op_type == "Constant" and not node.outputs[0].uses()], safe=True)
    for value in list(graph.initializers.values()):
        if not value.uses() and value not in graph.outputs:
            graph.initializers.pop(value.name)


class _Known:
    """The values of a graph that are known while it is exported.

    Args:
        graph: of the model.

    Attributes:
        tensors: what has been read or computed.
    """

    def __init__(self, graph: Any) -> None:
        self._inputs = set(graph.inputs)
        self.tensors: dict[Any, torch.Tensor] = {}

    def compute(self, node: Any) -> bool:
        """Compute a node if all that it reads is known.

        Returns:
            False for one that inputs decide, that is none of `_OPERATORS`, or whose result is large.
        """
        if node.op_type not in _OPERATORS or node.domain or len(node.outputs) != 1 or not node.inputs:
            return False
        inputs: list[Any] = [None if value is None else self._tensor(value) for value in node.inputs]
        if any(value is not None and tensor is None for value, tensor in zip(node.inputs, inputs, strict=True)):
            return False
        if node.op_type in _FLOAT_ARITHMETIC and not inputs[0].is_floating_point():
            return False
        try:
            if _most_elements(node, inputs) * _WIDEST > _LARGEST:
                return False
            attributes = {name: attribute_value(name, attribute) for name, attribute in node.attributes.items()}
            tensor = _OPERATORS[node.op_type](inputs, attributes)
        except (RuntimeError, TypeError, IndexError, ValueError, KeyError):
            return False
        if not _is_declared(node.outputs[0], tensor):
            return False
        self.tensors[node.outputs[0]] = tensor
        return True

    def _tensor(self, value: Any) -> torch.Tensor | None:
        """A value that is known; None for every other one, for a large one and one of a type that PyTorch lacks."""
        if value not in self.tensors:
            constant = None if value in self._inputs else ir.convenience.get_const_tensor(value)
            tensor = None if constant is None or constant.nbytes > _LARGEST else readable_tensor(constant)
            if tensor is None:
                return None
            self.tensors[value] = tensor
        return self.tensors[value]


def _most_elements(node: Any, inputs: Sequence[Any]) -> int:
    """An upper bound of the elements of a node's result, before it is computed."""
    tensors = [tensor for tensor in inputs if tensor is not None]
    if node.op_type in _EXPANDING:
        return math.prod([int(size) for size in tensors[-1]], start=max(1, tensors[0].numel()))
    if node.op_type in ("Gather", "MatMul"):
        return math.prod(tensor.numel() for tensor in tensors)
    total = sum(tensor.numel() for tensor in tensors)
    try:
        common: Sequence[int] = cast("Any", torch.broadcast_shapes)(*(tensor.shape for tensor in tensors))
        return max(total, math.prod(common))
    except RuntimeError:  # an operator that is not elementwise: its result is no larger than its inputs
        return total


def _is_declared(value: Any, tensor: torch.Tensor) -> bool:
    """Whether a tensor has the type and the sizes that the graph tells of a value, as far as it tells them."""
    if value.dtype is not None and tensor_adapters.to_torch_dtype(value.dtype) != tensor.dtype:
        return False
    return value.shape is None or (
        len(value.shape) == tensor.ndim
        and all(size == known for size, known in zip(tensor.shape, value.shape, strict=True) if isinstance(known, int))
    )


def _replaceable(computed: Sequence[Any], graph: Any) -> dict[Any, None]:
    """The computed nodes that tensors can replace, in their order.

    Those stay that compute an output of the graph, and those that only expand what a remaining node reads.
    """
    outputs = set(graph.outputs)
    gone = dict.fromkeys(computed)
    for node in reversed(computed):
        value = node.outputs[0]
        is_read = any(use.node not in gone for use in value.uses())
        if value in outputs or (is_read and node.op_type in _EXPANDING):
            del gone[node]
    return gone


def _replace(graph: Any, value: Any, tensor: torch.Tensor) -> None:
    """Put an initializer in a value's place, under its name."""
    element_type = ir.TensorType(tensor_adapters.from_torch_dtype(tensor.dtype))
    initializer = ir.Value(name=value.name, shape=ir.Shape(tensor.shape), type=element_type)
    initializer.const_value = tensor_adapters.TorchTensor(tensor.contiguous().clone(), name=value.name)
    value.name = None
    ir.convenience.replace_all_uses_with(value, initializer)
    graph.register_initializer(initializer)


def readable_tensor(constant: Any) -> torch.Tensor | None:
    """Copy an ONNX tensor; None for one of a type that PyTorch lacks, such as text and integers of four bits.

    Args:
        constant: an ir.TensorProtocol.
    """
    try:
        return _constant_tensor(constant)
    except (RuntimeError, TypeError, ValueError):
        return None


def _constant_tensor(constant: Any) -> torch.Tensor:
    raw = bytearray(constant.tobytes())
    dtype = tensor_adapters.to_torch_dtype(constant.dtype)
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(tuple(constant.shape.numpy()))


def attribute_value(name: str, attribute: Any) -> Any:
    """An attribute of a node as `WEIGHT_OPERATORS` take it."""
    value: Any = attribute.value
    if name == "to":  # of Cast
        return tensor_adapters.to_torch_dtype(ir.DataType(value))
    return (*value,) if isinstance(value, (list, tuple)) else value
