"""A float32 ONNX model → the same with Q/DQ nodes: int8, fp8 (E4M3), or int4 weights.

Enters: the model, what to quantise to, calibration data. Leaves: a model that says itself what is computed in which
type, as every flavour of TensorRT takes it, and notes on what stayed behind. A room of its own because neither of the
tools that place Q and DQ takes every model that torch2engine exports. On trained ones (a CNN, an MLP and a ViT that
know digits; relative L2 error in ONNX Runtime 1.32):

- onnxruntime.quantization 1.32 stops at tensors that the file gives no type for (a Reshape's: the MLP, the ViT). Where
  it works it answers the same (int8 CNN .017 by "max", .019 by "percentile"), but its "entropy" has as many bins as
  levels and so is "max".
- ModelOpt 0.47 answers much the same (int8 by "max" .014, .004, .007, some layers left in float32), but has no
  percentiles, loses where nodes come from, leaves the CNN in float32 without a word when asked for fp8, spells fp8 so
  that ONNX Runtime drops a Relu (MLP .061, here .024), and its int4 needs cppimport besides.
- This: int8 .017, .005, .009; fp8 .091, .024, .047; int4 .060, .031, .055. A ResNet, a ViT and a BERT (int8 "max",
  "percentile", "entropy"; fp8; int4): .010 .011 .011; .039; .032 - .012 .012 .016; .052; .074 - .008 .008 .011; .029;
  .037.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.config import QUANTIZED, Precision
from torch2engine.core.errors import InputError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.tensor_types import float32_tensors
from torch2engine.precision.graph.quantize_ranges import calibrate
from torch2engine.precision.graph.quantize_write import Writer, channel_axis

__all__ = ["OWN", "quantize"]

OWN = "the model brings its own quantisation, which stays as it is"

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm")
# DequantizeLinear in blocks, and QuantizeLinear with its type in an attribute.
_OPSET = 21
# Inputs of an int4 block, the first that divides them; TensorRT-RTX 1.6.1 builds them all. The digits' ViT has .053
# with 128, .049 with 64, .043 with 32, whose scales cost a quarter, a half and one bit for each weight.
_BLOCKS = (64, 32, 16)
_SHOWN = 8


@dataclass(frozen=True)
class _Target:
    """A node to quantise: the constants among its first two inputs, None for an activation."""

    node: Any
    constants: tuple[NDArray[Any] | None, NDArray[Any] | None]

    @property
    def activations(self) -> list[str]:
        return [self.node.input[index] for index, value in enumerate(self.constants) if value is None]


def quantize(
    source: Path,
    target: Path,
    precision: Precision,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    *,
    keep: Collection[str] = (),
    flavour: str | None = None,
) -> tuple[str, ...]:
    """Write the quantised model.

    "int8" and "fp8" quantise what enters convolutions and matrix products, symmetrically: weights with a scale for each
    channel, activations with one. In int8 a product of two activations stays in float32: attention weights are many
    small numbers below a largest of 1 (error of attention over 512 tokens .082, in fp8 .048). `weights="int4"` rounds
    the weights of matrix products to the nearest, in blocks, and needs no batch. A model that has Q/DQ nodes already is
    passed on as it is, but for int4.

    Args:
        source: a float32 ONNX model; external data lies beside it.
        target: where the quantised model goes, under the same names of inputs, outputs and nodes; its weights beside it
            where protobuf can't hold them. Appears whole or not at all.
        precision: "int8" or "fp8" by its method and percentile ("fp8" always by the largest value), or weights "int4".
        batches: arrays by input name, each of its own size; read once, one at a time.
        keep: names of nodes that stay in float32.
        flavour: "tensorrt" or "tensorrt_rtx", whose limits count; None for none.

    Returns:
        what the user should know, in sentences.

    Raises:
        InputError: no batch, a batch that the model can't take, or a model of an opset below 21.
        UnsupportedOperatorError: an int8 convolution for TensorRT-RTX, before a batch is read.
        InstallationError: "fp8" without ml_dtypes.
    """
    model = load_model(source)
    low = precision.weights or precision.dtype
    if low not in (*QUANTIZED, "int4"):
        raise InputError("quantize", got=f"precision {low!r}", allowed="'int8', 'fp8' or weights='int4'")
    if low in QUANTIZED and _is_quantized(model):
        if low == "int8" and flavour == "tensorrt_rtx":
            _refuse(_brought_convolutions(model), "disable the quantisers of these modules before the fine-tuning")
        _publish(model, target)
        return (OWN,)
    _check_opset(model)
    writer = Writer(model, low)
    targets = _targets(model, writer, keep)
    if low == "int4":
        notes = _write_blocks(writer, targets)
    else:
        targets, notes = _select(targets, low)
        if low == "int8" and flavour == "tensorrt_rtx":
            found = [one.node for one in targets if one.node.op_type in _CONVOLUTIONS]
            _refuse(found, f"take precision='fp8' or 'fp16'{_or_keep(found)}")
        notes += _write(writer, targets, source, precision, batches)
    writer.finish()
    _publish(model, target)
    return tuple(notes)


def _is_quantized(model: Any) -> bool:
    # ModelOpt's own operators for fp8 are called TRT_FP8QuantizeLinear and so on.
    return any(node.op_type.endswith(("QuantizeLinear", "DequantizeLinear")) for node in model.graph.node)


def _check_opset(model: Any) -> None:
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise InputError(
            "ONNX model",
            got=f"its opset is {opset}",
            allowed=f"Q and DQ need opset {_OPSET} or later",
            fix="export it again with a later opset_version",
        )


def _targets(model: Any, writer: Writer, keep: Collection[str]) -> list[_Target]:
    """Convolutions and matrix products of float32 that depend on the inputs."""
    known = float32_tensors(model)
    found: list[_Target] = []
    for node in model.graph.node:
        if node.op_type not in (*_CONVOLUTIONS, *_PRODUCTS) or node.name in keep:
            continue
        if node.input[0] not in known or node.input[1] not in known:
            continue
        one = _Target(node, (writer.constant(node.input[0]), writer.constant(node.input[1])))
        if one.activations:
            found.append(one)
    return found


def _select(targets: Sequence[_Target], low: str) -> tuple[list[_Target], list[str]]:
    """What can be quantised, and notes on what can't."""
    chosen: list[_Target] = []
    left: dict[str, list[Any]] = {}
    for one in targets:
        if one.node.op_type in _CONVOLUTIONS and one.constants[1] is None:
            reason = "a convolution whose weight is computed"
        elif low == "fp8" and one.node.op_type == "ConvTranspose":
            reason = "a transposed convolution, for which TensorRT-RTX builds fp8 engines that can't run"
        elif low == "int8" and len(one.activations) == 2:
            reason = "a product of two activations, which int8 would spoil"
        elif any(value is not None and not np.isfinite(value).all() for value in one.constants):
            reason = "a weight is NaN or infinite"
        else:
            chosen.append(one)
            continue
        left.setdefault(reason, []).append(one.node)
    return chosen, [_stays(nodes, reason) for reason, nodes in left.items()]


def _refuse(nodes: Sequence[Any], fix: str) -> None:
    """TensorRT-RTX 1.6.1 takes int8 in matrix products, and never builds an int8 convolution."""
    if not nodes:
        return
    listed: list[UnsupportedNode] = []
    for node in nodes:
        origin = origin_of(node)
        listed.append(UnsupportedNode(node.op_type, node.name, origin.module, origin.source, "no int8 convolution"))
    raise UnsupportedOperatorError(
        "TensorRT-RTX",
        nodes=listed,
        got=f"it can't build {len(nodes)} convolution{'s' if len(nodes) > 1 else ''} in int8",
        allowed="int8 matrix products",
        fix=fix,
    )


def _or_keep(nodes: Sequence[Any]) -> str:
    modules = dict.fromkeys(origin_of(node).module for node in nodes)
    return f", or int8 with keep_fp32={list(modules)!r}" if modules and all(modules) else ""


def _brought_convolutions(model: Any) -> list[Any]:
    """Convolutions whose inputs the model itself quantises to int8."""
    import onnx

    makers = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            types[node.output[0]] = node.attribute[0].t.data_type

    def is_int8(name: str) -> bool:
        back = makers.get(name)
        if back is None or back.op_type != "DequantizeLinear":
            return False
        maker = makers.get(back.input[0])
        asked = [one.i for one in maker.attribute if one.name == "output_dtype"] if maker is not None else []
        zeros = [types[zero] for zero in back.input[2:] if zero in types]
        stored = [types[back.input[0]]] if back.input[0] in types else []
        kind = next(iter([*zeros, *stored, *asked]), onnx.TensorProto.UINT8)
        return kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

    return [node for node in model.graph.node if node.op_type in _CONVOLUTIONS and is_int8(node.input[0])]


def _write(
    writer: Writer,
    targets: Sequence[_Target],
    source: Path,
    precision: Precision,
    batches: Iterable[Mapping[str, NDArray[Any]]],
) -> list[str]:
    """Calibrate and put Q and DQ; returns notes."""
    if not targets:
        return ["nothing is quantised: the model has no float32 convolution or matrix product with weights left for it"]
    method = precision.method if precision.dtype == "int8" else "max"
    names = list(dict.fromkeys(name for one in targets for name in one.activations))
    ranges = calibrate(load_model(source), names, batches, method, precision.percentile)
    by_max: list[Any] = []
    left: dict[str, list[Any]] = {}
    for one in targets:
        found = [ranges[name] for name in one.activations]
        if problem := next((each.problem for each in found if each.problem), ""):
            left.setdefault(f"what enters {problem}", []).append(one.node)
            continue
        if any(each.by_max for each in found):
            by_max.append(one.node)
        for position, value in enumerate(one.constants):
            name = one.node.input[position]
            if value is None:
                writer.quantize_activation(one.node, position, ranges[name].threshold)
            else:
                writer.quantize_weight(one.node, position, value, channel_axis(one.node, position, value.shape))
    notes = [_stays(nodes, reason) for reason, nodes in left.items()]
    if by_max:
        notes.append(f"{_names(by_max)}: method 'max' instead of {method!r}, which has too few values to go by")
    if precision.method != method:
        notes.append(f"method {precision.method!r} is for int8; {precision.dtype} takes the largest value")
    return notes


def _write_blocks(writer: Writer, targets: Sequence[_Target]) -> list[str]:
    """Put int4 weights; returns notes."""
    odd: list[Any] = []
    done = 0
    for one in targets:
        value = one.constants[1]
        if one.node.op_type not in _PRODUCTS or value is None or value.ndim != 2 or not np.isfinite(value).all():
            continue
        turned = any(attribute.name == "transB" and attribute.i for attribute in one.node.attribute)
        inputs = value.shape[1 if turned else 0]
        block = next((size for size in _BLOCKS if inputs and inputs % size == 0), 0)
        if block:
            writer.quantize_blocks(one.node, value, block)
            done += 1
        else:
            odd.append(one.node)
    notes = [_stays(odd, f"its inputs are no multiple of {_BLOCKS[-1]}")] if odd else []
    return notes if done else [*notes, "nothing is quantised: the model has no weights for int4"]


def _names(nodes: Sequence[Any]) -> str:
    """Nodes by torch module where it is known."""
    names = list(dict.fromkeys(origin_of(node).module or node.name for node in nodes))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def _stays(nodes: Sequence[Any], reason: str) -> str:
    return f"{_names(nodes)}: stays in float32, {reason}"


def _publish(model: Any, target: Path) -> None:
    """Write beside the target, then rename: the data first, since the model names it."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        save_model(model, Path(folder) / target.name)
        data = Path(folder) / f"{target.name}.data"
        if data.exists():
            os.replace(data, target.with_name(data.name))
        os.replace(Path(folder) / target.name, target)
