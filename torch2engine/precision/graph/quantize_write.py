"""Q/DQ nodes and quantised weights, written into an ONNX graph.

Enters: an onnx.ModelProto and, per tensor, the largest value to represent. Leaves: the same model, changed in place.
Apart from `quantize`, which decides what is quantised, because here is decided how it is spelled: a pair of Q and DQ on
an activation, a quantised initializer with a DQ behind it for a weight, both with the origin of what reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.errors import InstallationError
from torch2engine.onnx_graph.node_origins import copy_origin
from torch2engine.onnx_graph.walk import subgraphs, walk_nodes

__all__ = ["Writer", "channel_axis"]

_INT8_LARGEST = 127.0
_FP8_LARGEST = 448.0  # of E4M3
_INT4_LARGEST = 7.0


def channel_axis(node: Any, position: int, shape: tuple[int, ...]) -> int | None:
    """The axis of a constant input along which each channel has a scale of its own; None: one for all."""
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


class Writer:
    """Changes one model.

    Args:
        model: onnx.ModelProto, changed in place; call `finish` at the end.
        dtype: "int8", "fp8" or "int4".
    """

    def __init__(self, model: Any, dtype: str) -> None:
        self._graph = model.graph
        self._dtype = dtype
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._taken = set(self._constants) | set(self._makers) | {value.name for value in self._graph.input}
        self._taken |= {node.name for node in self._graph.node}
        self._before: dict[str, list[Any]] = {}
        self._done: dict[tuple[str, int | None], str] = {}
        self._replaced: set[str] = set()

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that is the same in every call: a weight, or one behind Transpose or Identity."""
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
        """Put Q and DQ before an input of a node, one pair for all that read the tensor quantised."""
        import onnx
        from onnx import helper

        name = node.input[position]
        key = (name, None)
        if key not in self._done:
            largest = _INT8_LARGEST if self._dtype == "int8" else _FP8_LARGEST
            scale = self._add(f"{name}.scale", np.float32(threshold / largest))
            low, back = self._fresh(f"{name}.{self._dtype}"), self._fresh(f"{name}.dequantized")
            # The type stands in an attribute, not in a zero point: where that is there and an E4M3 zero, ONNX Runtime
            # (1.32) drops a Relu before Q as if there were no numbers below.
            kind = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}[self._dtype]
            self._insert(node, helper.make_node("QuantizeLinear", [name, scale], [low], output_dtype=kind))
            self._insert(node, helper.make_node("DequantizeLinear", [low, scale], [back]))
            self._done[key] = back
        node.input[position] = self._done[key]

    def quantize_weight(self, node: Any, position: int, value: NDArray[Any], axis: int | None) -> None:
        """Put a quantised constant and DQ in a constant's place."""
        from onnx import helper

        name = node.input[position]
        key = (name, -1 if axis is None else axis)
        if key not in self._done:
            largest = _INT8_LARGEST if self._dtype == "int8" else _FP8_LARGEST
            others = tuple(dim for dim in range(value.ndim) if dim != axis)
            sizes = np.abs(value).max(axis=others if axis is not None else None, initial=0.0)
            # A channel of zeros is zero at any scale; 0 itself is none.
            scales = np.where(sizes > 0, np.maximum(sizes / largest, np.finfo(np.float32).tiny), 1.0)
            scales = np.asarray(scales, np.float32)
            shape = [-1 if dim == axis else 1 for dim in range(value.ndim)]
            scaled = value / (scales if axis is None else scales.reshape(shape))
            low = self._add_low(f"{name}.{self._dtype}", scaled)
            back = self._fresh(f"{name}.dequantized")
            given: dict[str, Any] = {} if axis is None else {"axis": axis}
            inputs = [low, self._add(f"{name}.scale", scales)]
            self._insert(node, helper.make_node("DequantizeLinear", inputs, [back], **given))
            self._done[key] = back
            self._replaced.add(name)
        node.input[position] = self._done[key]

    def quantize_blocks(self, node: Any, value: Any, block: int) -> None:
        """Put an int4 matrix (inputs, outputs), a scale for each `block` inputs, and DQ in a weight's place.

        Args:
            value: the constant as it is, (inputs, outputs) float32, the other way round in a Gemm with transB, which is
                turned and loses that: TensorRT takes blocks along the last axis but one.
            block: divides the inputs.
        """
        from onnx import helper

        name = node.input[1]
        turned = [attribute for attribute in node.attribute if attribute.name == "transB" and attribute.i]
        key = (name, -block if turned else block)
        for attribute in turned:
            attribute.i = 0
            value = value.T
        if key not in self._done:
            rows, columns = value.shape
            blocks = value.reshape(rows // block, block, columns)
            sizes = np.abs(blocks).max(axis=1)
            scales = np.where(sizes > 0, np.maximum(sizes / _INT4_LARGEST, np.finfo(np.float32).tiny), 1.0)
            scales = scales.astype(np.float32)
            low = self._add_low(f"{name}.int4", (blocks / scales[:, None]).reshape(rows, columns))
            back = self._fresh(f"{name}.dequantized")
            inputs = [low, self._add(f"{name}.scale", scales)]
            self._insert(node, helper.make_node("DequantizeLinear", inputs, [back], axis=0, block_size=block))
            self._done[key] = back
            self._replaced.add(name)
        node.input[1] = self._done[key]

    def finish(self) -> None:
        """Put the new nodes before those that read them, and drop weights that nothing reads any more."""
        graph = self._graph
        nodes = [one for node in graph.node for one in (*self._before.get(_key(node), ()), node)]
        used = {value.name for value in graph.output} | set(_reads(nodes))
        dropped = self._replaced - used
        while dropped:
            gone = [node for node in nodes if any(name in dropped for name in node.output)]
            nodes = [node for node in nodes if all(name not in dropped for name in node.output)]
            used = {value.name for value in graph.output} | set(_reads(nodes))
            for name in dropped:
                self._constants.pop(name, None)
            dropped = {name for node in gone for name in node.input} - used
        tensors = list(self._constants.values())
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        there = {name for node in nodes for name in node.output}
        infos = [value for value in graph.value_info if value.name in there]
        del graph.value_info[:]
        graph.value_info.extend(infos)

    def _insert(self, reader: Any, node: Any) -> None:
        node.name = self._fresh(f"{node.output[0]}/{node.op_type}")
        copy_origin(reader, node)
        self._before.setdefault(_key(reader), []).append(node)

    def _add(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        name = self._fresh(name)
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add_low(self, name: str, scaled: NDArray[Any]) -> str:
        """A constant of the low type, of values in its units."""
        import onnx

        name = self._fresh(name)
        if self._dtype == "fp8":
            clipped = np.clip(scaled, -_FP8_LARGEST, _FP8_LARGEST)
            raw, kind = clipped.astype(_float8()).tobytes(), onnx.TensorProto.FLOAT8E4M3FN
        elif self._dtype == "int8":
            whole = np.clip(np.rint(scaled), -_INT8_LARGEST, _INT8_LARGEST).astype(np.int8)
            raw, kind = whole.tobytes(), onnx.TensorProto.INT8
        else:
            whole = np.clip(np.rint(scaled), -_INT4_LARGEST, _INT4_LARGEST).astype(np.int8).ravel()
            pairs = np.append(whole, np.zeros(whole.size % 2, np.int8)).astype(np.uint8) & 15
            raw, kind = (pairs[::2] | pairs[1::2] << 4).tobytes(), onnx.TensorProto.INT4
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=scaled.shape, raw_data=raw)
        self._constants[name] = tensor
        return name

    def _fresh(self, name: str) -> str:
        free, count = name, 0
        while free in self._taken:
            count += 1
            free = f"{name}.{count}"
        self._taken.add(free)
        return free


def _key(node: Any) -> str:
    """Of a node in its graph; names may be missing, outputs are unique."""
    return next(name for name in node.output if name)


def _reads(nodes: Iterable[Any]) -> Iterator[str]:
    """Give the names that nodes and the graphs inside them read."""
    for node in walk_nodes(nodes):
        yield from node.input
        for graph in subgraphs(node):
            yield from (value.name for value in graph.output)


def _float8() -> Any:
    """numpy's type E4M3."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise InstallationError(
            "ml_dtypes",
            got=f"precision 'fp8' needs it, and it can't be imported ({error})",
            fix="pip install 'torch2engine[quantize]'",
        ) from error
    return ml_dtypes.float8_e4m3fn
