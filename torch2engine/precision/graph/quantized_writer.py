"""Q/DQ nodes and quantised weights, written into an ONNX graph.

Enters: an onnx.ModelProto and, per tensor, the largest value to represent. Leaves: the same model, changed in place.
Separate from `quantize`, which decides what is quantised, because this file decides on the form. An activation gets a
pair of Q and DQ. A weight becomes a quantised initializer with a DQ behind it. Both have the origin of the node that
reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.errors import InstallationError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.onnx_graph.node_origins import copy_origin
from torch2engine.onnx_graph.tensor_types import element_type
from torch2engine.onnx_graph.walk import subgraphs, walk_nodes

__all__ = ["QuantizedWriter", "channel_axis"]

Floats: TypeAlias = "NDArray[np.float32]"


def channel_axis(node: Any, position: int, shape: tuple[int, ...]) -> int | None:
    """Find the axis of a constant input along which each channel has a scale of its own; None: one scale for all."""
    options = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # (in, out/group, ...): with groups one entry of that axis is several channels.
        return 1 if options.get("group", 1) == 1 else None
    if node.op_type == "Gemm" and position == 1:
        return 0 if options.get("transB") else 1
    # TensorRT takes channels of a matrix on the right only.
    return 1 if position == 1 and len(shape) == 2 else None


class QuantizedWriter:
    """Quantises tensors of one model.

    Args:
        model: onnx.ModelProto, changed in place; call `finish` at the end.
        precision: one of `QUANTIZED_PRECISIONS` or `WEIGHT_PRECISIONS`.
    """

    def __init__(self, model: Any, precision: str) -> None:
        self._graph = model.graph
        self._row = PRECISION_TYPES[precision]
        self._element_type = element_type(precision)
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._taken_names = set(self._constants) | set(self._makers) | {value.name for value in self._graph.input}
        self._taken_names |= {node.name for node in self._graph.node}
        self._new_nodes: dict[str, list[Any]] = {}  # by the key of the node that they stand before
        self._dequantized: dict[_TensorKey, str] = {}
        self._replaced_weights: set[str] = set()

    def constant(self, name: str) -> NDArray[Any] | None:
        """Find the value of a tensor that is the same in every call: a weight, or one behind Transpose or Identity."""
        from onnx import numpy_helper

        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]))
        node = self._makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            return np.asarray(numpy_helper.to_array(attributes["value"].t))
        if node.op_type not in ("Transpose", "Identity"):
            return None
        value = self.constant(node.input[0])
        if value is None or node.op_type == "Identity":
            return value
        return np.transpose(value, list(attributes["perm"].ints) if "perm" in attributes else None)

    def quantize_activation(self, node: Any, position: int, threshold: float) -> None:
        """Put Q and DQ before an input of a node; all nodes that read the tensor quantised share one pair."""
        from onnx import helper

        name = node.input[position]
        key = _TensorKey(name)
        if key not in self._dequantized:
            scale = self._add(f"{name}.scale", np.float32(threshold / self._row.largest))
            quantized = self._fresh(f"{name}.{self._row.name}")
            back = self._fresh(f"{name}.dequantized")
            # The type stands in an attribute, not in a zero point. With an E4M3 zero point of 0, ONNX Runtime (1.32)
            # drops a Relu before Q, as if no number were below 0.
            quantizing = helper.make_node("QuantizeLinear", [name, scale], [quantized], output_dtype=self._element_type)
            self._insert(node, quantizing)
            self._insert(node, helper.make_node("DequantizeLinear", [quantized, scale], [back]))
            self._dequantized[key] = back
        node.input[position] = self._dequantized[key]

    def quantize_weight(self, node: Any, position: int, value: NDArray[Any], axis: int | None) -> None:
        """Put a quantised constant and DQ in a constant's place."""
        from onnx import helper

        name = node.input[position]
        key = _TensorKey(name, is_weight=True, axis=axis)
        if key not in self._dequantized:
            others = tuple(dim for dim in range(value.ndim) if dim != axis)
            scales = self._scales(np.abs(value).max(axis=others if axis is not None else None, initial=0.0))
            shape = [-1 if dim == axis else 1 for dim in range(value.ndim)]
            scaled = value / (scales if axis is None else scales.reshape(shape))
            quantized = self._add_quantized(f"{name}.{self._row.name}", scaled)
            back = self._fresh(f"{name}.dequantized")
            attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
            inputs = [quantized, self._add(f"{name}.scale", scales)]
            self._insert(node, helper.make_node("DequantizeLinear", inputs, [back], **attributes))
            self._dequantized[key] = back
            self._replaced_weights.add(name)
        node.input[position] = self._dequantized[key]

    def quantize_blocks(self, node: Any, value: Any, block: int) -> None:
        """Put an int4 matrix, a scale for each block of its inputs, and DQ in a weight's place.

        Args:
            node: a matrix product. A Gemm loses its transB, since TensorRT takes blocks along the last axis but one.
            value: the constant, float32, (inputs, outputs); in a Gemm with transB (outputs, inputs).
            block: how many inputs share a scale; it divides their number.
        """
        from onnx import helper

        name = node.input[1]
        transposed = [attribute for attribute in node.attribute if attribute.name == "transB" and attribute.i]
        key = _TensorKey(name, is_weight=True, block=block, is_transposed=bool(transposed))
        for attribute in transposed:
            attribute.i = 0
            value = value.T
        if key not in self._dequantized:
            rows, columns = value.shape
            blocks = value.reshape(rows // block, block, columns)
            scales = self._scales(np.abs(blocks).max(axis=1))
            quantized = self._add_quantized(
                f"{name}.{self._row.name}", (blocks / scales[:, None]).reshape(rows, columns)
            )
            back = self._fresh(f"{name}.dequantized")
            inputs = [quantized, self._add(f"{name}.scale", scales)]
            self._insert(node, helper.make_node("DequantizeLinear", inputs, [back], axis=0, block_size=block))
            self._dequantized[key] = back
            self._replaced_weights.add(name)
        node.input[1] = self._dequantized[key]

    def finish(self) -> None:
        """Put the new nodes before those that read them, and drop weights that nothing reads any more."""
        graph = self._graph
        nodes = [one for node in graph.node for one in (*self._new_nodes.get(_node_key(node), ()), node)]
        nodes = self._without_unread(nodes)
        tensors = list(self._constants.values())
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        made = {name for node in nodes for name in node.output}
        infos = [value for value in graph.value_info if value.name in made]
        del graph.value_info[:]
        graph.value_info.extend(infos)

    def _without_unread(self, nodes: list[Any]) -> list[Any]:
        """Drop replaced weights that nothing reads any more, and the nodes that make or feed them alone."""
        outputs = {value.name for value in self._graph.output}
        unread = self._replaced_weights - outputs - set(_read_names(nodes))
        while unread:
            dropped = [node for node in nodes if any(name in unread for name in node.output)]
            nodes = [node for node in nodes if all(name not in unread for name in node.output)]
            for name in unread:
                self._constants.pop(name, None)
            unread = {name for node in dropped for name in node.input} - outputs - set(_read_names(nodes))
        return nodes

    def _scales(self, sizes: Any) -> Floats:
        """Compute scales from the largest absolute values; where these are 0, any scale but 0 will do."""
        least = np.finfo(np.float32).tiny
        return np.asarray(np.where(sizes > 0, np.maximum(sizes / self._row.largest, least), 1.0), np.float32)

    def _insert(self, reader: Any, node: Any) -> None:
        """Put a new node before the one that reads it, with the same origin."""
        node.name = self._fresh(f"{node.output[0]}/{node.op_type}")
        copy_origin(reader, node)
        self._new_nodes.setdefault(_node_key(reader), []).append(node)

    def _add(self, name: str, value: Any) -> str:
        """Add a constant under a free name."""
        from onnx import numpy_helper

        name = self._fresh(name)
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add_quantized(self, name: str, scaled: NDArray[Any]) -> str:
        """Add a constant of the quantised type, from values in its units."""
        from onnx import TensorProto

        name = self._fresh(name)
        clipped = np.clip(scaled, -self._row.largest, self._row.largest)
        raw = _PACKERS[self._row.name](clipped)
        tensor = TensorProto(name=name, data_type=self._element_type, dims=scaled.shape, raw_data=raw)
        self._constants[name] = tensor
        return name

    def _fresh(self, name: str) -> str:
        free = name
        count = 0
        while free in self._taken_names:
            count += 1
            free = f"{name}.{count}"
        self._taken_names.add(free)
        return free


@dataclass(frozen=True)
class _TensorKey:
    """One way to quantise a tensor; all nodes that read it so share the result."""

    name: str
    is_weight: bool = False
    axis: int | None = None
    block: int = 0
    is_transposed: bool = False


def _node_key(node: Any) -> str:
    """Identify a node in its graph: names may be missing, outputs are unique."""
    return next(name for name in node.output if name)


def _read_names(nodes: Iterable[Any]) -> Iterator[str]:
    """Give the names that nodes and the graphs inside them read."""
    for node in walk_nodes(nodes):
        yield from node.input
        for graph in subgraphs(node):
            yield from (value.name for value in graph.output)


def _pack_int8(values: NDArray[Any]) -> bytes:
    return np.rint(values).astype(np.int8).tobytes()


def _pack_int4(values: NDArray[Any]) -> bytes:
    """Pack two numbers into a byte, the first one into its lower half."""
    whole = np.rint(values).astype(np.int8).ravel()
    pairs = np.append(whole, np.zeros(whole.size % 2, np.int8)).astype(np.uint8) & 15
    return (pairs[::2] | pairs[1::2] << 4).tobytes()


def _pack_fp8(values: NDArray[Any]) -> bytes:
    try:
        import ml_dtypes
    except ImportError as error:
        raise InstallationError(
            "ml_dtypes",
            got=f"no module that can be imported ({error})",
            allowed="ml_dtypes for precision 'fp8'",
            fix="pip install 'torch2engine[quantize]'",
        ) from error
    return values.astype(ml_dtypes.float8_e4m3fn).tobytes()


_PACKERS: dict[str, Callable[[NDArray[Any]], bytes]] = {"int8": _pack_int8, "fp8": _pack_fp8, "int4": _pack_int4}
"""Clipped values in the type's units -> bytes of an ONNX tensor."""
