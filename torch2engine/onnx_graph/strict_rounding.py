"""A typed ONNX model → one in float32 that rounds to the low type after every operator.

Enters: a model with float16 or bfloat16 tensors. Leaves: a float32 model that answers on the CPU like a GPU that
computes each operator in that type. Separate because ONNX Runtime's CPU provider lacks most operators in these types:
it computes float16 in float32 and leaves casts out, so that it shows neither overflow nor rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from torch2engine.onnx_graph.tensor_types import (
    DTYPE_ATTRIBUTES,
    cast_element_types,
    tensor_types,
    without_weight_values,
)
from torch2engine.onnx_graph.walk import subgraphs

__all__ = ["EXACT_OPS", "round_strictly"]

# These operators only move or choose values, which are rounded already.
EXACT_OPS = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min"),
        *("Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)


def round_strictly(model: Any) -> Any:
    """Turn a typed model into its float32 twin.

    A matrix product or a sum is added up in float32 and rounded once, as tensor cores do. Inputs and outputs of a low
    type become float32 too.

    Args:
        model: ModelProto with its weights; it is changed.

    Returns:
        the twin; without a low type in the model, the twin is equal to it.
    """
    import onnx
    from onnx import inliner

    onnx_untyped: Any = onnx  # the package's own annotations lack shape_inference
    if model.functions:  # their bodies would keep the low types
        model = inliner.inline_local_functions(model)
    types = tensor_types(model)
    typed = without_weight_values(model)
    if any(list(subgraphs(node)) for node in model.graph.node):
        typed = onnx_untyped.shape_inference.infer_shapes(typed)  # the types inside branches and loops
    _StrictRounding(onnx).rewrite(model.graph, typed.graph, types)
    return model


class _StrictRounding:
    """One rewriting of a model.

    Args:
        onnx: the module.
    """

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        proto = onnx.TensorProto
        self._float32 = proto.FLOAT
        self._low_types = cast_element_types()
        self._name_count = 0

    def rewrite(self, graph: Any, typed: Any, outer_types: dict[str, int]) -> None:
        """Make a graph and those inside its nodes float32, in place.

        Args:
            graph: GraphProto.
            typed: a copy of it, with the types of its tensors as far as these were inferred.
            outer_types: types of its tensors, as far as known, and of those around a subgraph.
        """
        types = dict(outer_types)
        for value in (*typed.value_info, *graph.value_info, *graph.input, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            types[tensor.name] = tensor.data_type
            self._widen_tensor(tensor)
        nodes = list(self._rewritten_nodes(graph, typed, types))
        del graph.node[:]
        graph.node.extend(nodes)
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type in self._low_types:
                value.type.tensor_type.elem_type = self._float32

    def _rewritten_nodes(self, graph: Any, typed: Any, types: dict[str, int]) -> Iterator[Any]:
        """Give each node, followed by the casts that round its outputs."""
        for node, typed_node in zip(graph.node, typed.node, strict=True):
            for inner, typed_inner in zip(subgraphs(node), subgraphs(typed_node), strict=True):
                self.rewrite(inner, typed_inner, types)
            self._widen_attributes(node)
            rounding: list[Any] = []
            for index, name in enumerate(node.output):
                low_type = types.get(name, 0)
                if low_type in self._low_types and node.op_type not in EXACT_OPS:
                    exact = self._new_name("exact")
                    node.output[index] = exact
                    rounding += self._round(exact, name, low_type)
            yield node
            yield from rounding

    def _round(self, exact: str, name: str, low_type: int) -> list[Any]:
        """Make the nodes that round the tensor `exact` to a low type, under `name`."""
        narrow = self._new_name("low")
        make = self._onnx.helper.make_node
        return [make("Cast", [exact], [narrow], to=low_type), make("Cast", [narrow], [name], to=self._float32)]

    def _widen_attributes(self, node: Any) -> None:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                self._widen_tensor(attribute.t)
            elif attribute.name in DTYPE_ATTRIBUTES and attribute.i in self._low_types:
                attribute.i = self._float32

    def _widen_tensor(self, tensor: Any) -> None:
        if tensor.data_type in self._low_types:
            values = self._onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(self._onnx.numpy_helper.from_array(values, tensor.name))

    def _new_name(self, stem: str) -> str:
        self._name_count += 1
        return f"torch2engine.{stem}{self._name_count}"
