"""A typed ONNX model → one in float32 that rounds to the low type after every operator.

Enters: a model with float16 or bfloat16 tensors. Leaves: one that answers on the CPU like a GPU that computes each
operator in that type. A room of its own because ONNX Runtime's CPU
provider computes float16 in float32 and leaves the casts out, so it sees neither overflow nor rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.onnx_graph.model import load, save, types

__all__ = ["EXACT_OPS", "strict"]

# These only move or choose values, which are rounded already.
EXACT_OPS = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min"),
        *("Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)


def strict(source: Path, target: Path) -> None:
    """Write the float32 twin of a typed model.

    A matrix product or a sum is added up in float32 and rounded once, as tensor cores do. Inputs and outputs of a low
    type become float32 too.

    Args:
        source: the typed model; without a low type in it, the twin is a copy.
        target: where the twin goes.
    """
    import onnx

    model = load(source)
    known = types(model)
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        model = onnx.shape_inference.infer_shapes(model)  # the types inside branches and loops
    _Twin(onnx).rewrite(model.graph, known)
    save(model, target)


class _Twin:
    """One rewriting.

    Args:
        onnx: the module.
    """

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        proto = onnx.TensorProto
        self._float = proto.FLOAT
        self._low = (proto.FLOAT16, proto.BFLOAT16)
        self._made = 0

    def rewrite(self, graph: Any, outer: dict[str, int]) -> None:
        """Make a graph and those inside its nodes float32, in place.

        Args:
            graph: GraphProto.
            outer: types of its tensors, as far as known, and of those around a subgraph.
        """
        known = dict(outer)
        for value in (*graph.value_info, *graph.input, *graph.output):
            known[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            known[tensor.name] = tensor.data_type
            self._widen(tensor)
        nodes = list(self._nodes(graph, known))
        del graph.node[:]
        graph.node.extend(nodes)
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type in self._low:
                value.type.tensor_type.elem_type = self._float

    def _nodes(self, graph: Any, known: dict[str, int]) -> Iterator[Any]:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.rewrite(attribute.g, known)
                elif attribute.HasField("t"):
                    self._widen(attribute.t)
                elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i in self._low:
                    attribute.i = self._float
            rounded: list[Any] = []
            for index, name in enumerate(node.output):
                low = known.get(name)
                if low is not None and low in self._low and node.op_type not in EXACT_OPS:
                    exact = self._name("exact")
                    node.output[index] = exact
                    rounded += self._round(exact, name, low)
            yield node
            yield from rounded

    def _round(self, exact: str, name: str, low: int) -> list[Any]:
        narrow = self._name("low")
        make = self._onnx.helper.make_node
        return [make("Cast", [exact], [narrow], to=low), make("Cast", [narrow], [name], to=self._float)]

    def _widen(self, tensor: Any) -> None:
        if tensor.data_type in self._low:
            values = self._onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(self._onnx.numpy_helper.from_array(values, tensor.name))

    def _name(self, what: str) -> str:
        self._made += 1
        return f"torch2engine.{what}{self._made}"
