"""A float32 ONNX model → the same with Q/DQ nodes: int8, fp8 (E4M3), or int4 weights.

Enters: the model, what to quantise to, calibration data. Leaves: a model whose nodes say what is computed in which
type, for every flavour of TensorRT, and notes on what stays in float32. Separate because no other tool that places Q
and DQ takes every model that torch2engine exports; `benchmarks/quantizers.md` compares them.

The table of precisions says what is quantised to a type, and how its ranges are found.
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

from torch2engine.core.config import Precision
from torch2engine.core.errors import InputError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.core.precisions import (
    CAST_PRECISIONS,
    PRECISION_TYPES,
    QUANTIZED_PRECISIONS,
    WEIGHT_PRECISIONS,
    quoted,
)
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.tensor_types import float32_tensors
from torch2engine.precision.graph.calibrate_ranges import RangeRule, calibrate_ranges
from torch2engine.precision.graph.quantized_writer import QuantizedWriter, channel_axis

__all__ = ["OWN_QUANTISATION_NOTE", "quantize"]

OWN_QUANTISATION_NOTE = "the model brings its own quantisation, which stays as it is"

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_MATRIX_PRODUCTS = ("MatMul", "Gemm")
# The first opset that has DequantizeLinear in blocks, and QuantizeLinear with its type in an attribute.
_LEAST_OPSET = 21
# How many inputs an int4 block has: the first of these that divides them. TensorRT-RTX 1.6.1 builds them all. Smaller
# blocks are more accurate, but have more scales to store.
_BLOCK_SIZES = (64, 32, 16)
_SHOWN = 8  # names in a note


@dataclass(frozen=True)
class _Product:
    """A node to quantise.

    Args:
        node: a convolution or matrix product.
        constants: values of its first two inputs; None for an activation.
    """

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
    float32_nodes: Collection[str] = (),
    flavour: str | None = None,
) -> tuple[str, ...]:
    """Write the quantised model.

    A quantised precision quantises what enters convolutions and matrix products, symmetrically. Weights have a scale
    for each channel, activations have one. `weights="int4"` rounds the weights of matrix products to the nearest, in
    blocks, and needs no batch. A model that has Q/DQ nodes already is passed on as it is, except for int4.

    Args:
        source: a float32 ONNX model; external data lies beside it.
        target: the file to write, with the same names of inputs, outputs and nodes. Weights that protobuf can't hold go
            beside it. It appears whole or not at all.
        precision: a quantised one, with the method and percentile that find ranges, or one of 4-bit weights.
        batches: arrays by input name, of any sizes; read once, one at a time.
        float32_nodes: names of nodes that stay in float32.
        flavour: "tensorrt" or "tensorrt_rtx", whose limits count; None for none.

    Returns:
        notes for the user, in sentences.

    Raises:
        InputError: no batch, a batch that the model can't take, or a model of an opset below 21.
        UnsupportedOperatorError: a convolution that the flavour does not build in this type, before a batch is read.
        InstallationError: the library that packs numbers of this type is missing.
    """
    model = load_model(source)
    lowest = precision.lowest_type
    if lowest not in (*QUANTIZED_PRECISIONS, *WEIGHT_PRECISIONS):
        quantized = ", ".join(map(repr, QUANTIZED_PRECISIONS))
        weights = quoted(WEIGHT_PRECISIONS, "or")
        raise InputError(
            "quantize", got=f"precision {lowest!r}", allowed=f"{quantized} or weights={weights}", fix="pass one"
        )
    refuses_convolutions = flavour in PRECISION_TYPES[lowest].quantization.no_convolutions
    if lowest in QUANTIZED_PRECISIONS and _is_quantized(model):
        if refuses_convolutions:
            fix = "disable the quantisers of these modules before the fine-tuning"
            _refuse_convolutions(_quantized_convolutions(model), lowest, fix)
        _publish(model, target)
        return (OWN_QUANTISATION_NOTE,)
    _check_opset(model)
    writer = QuantizedWriter(model, lowest)
    products = _find_products(model, writer, float32_nodes)
    if lowest in WEIGHT_PRECISIONS:
        notes = _write_blocks(writer, products)
    else:
        products, notes = _select_products(products, lowest)
        if refuses_convolutions:
            convolutions = [one.node for one in products if one.node.op_type in _CONVOLUTIONS]
            possible = [
                name
                for name in QUANTIZED_PRECISIONS
                if flavour not in PRECISION_TYPES[name].quantization.no_convolutions
            ]
            fix = f"take precision={quoted((*possible, CAST_PRECISIONS[0]), 'or')}{_or_keep_fp32(convolutions, lowest)}"
            _refuse_convolutions(convolutions, lowest, fix)
        notes += _write_quantized(writer, products, source, precision, batches)
    writer.finish()
    _publish(model, target)
    return tuple(notes)


def _is_quantized(model: Any) -> bool:
    # ModelOpt's own operators for fp8 are called TRT_FP8QuantizeLinear and so on.
    return any(node.op_type.endswith(("QuantizeLinear", "DequantizeLinear")) for node in model.graph.node)


def _check_opset(model: Any) -> None:
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < _LEAST_OPSET:
        raise InputError(
            "ONNX model",
            got=f"opset {opset}",
            allowed=f"{_LEAST_OPSET} or later, which Q and DQ need",
            fix="export it again with a later opset_version",
        )


def _find_products(model: Any, writer: QuantizedWriter, float32_nodes: Collection[str]) -> list[_Product]:
    """Find the convolutions and matrix products of float32 that depend on the inputs."""
    float32_names = float32_tensors(model)
    products: list[_Product] = []
    for node in model.graph.node:
        if node.op_type not in (*_CONVOLUTIONS, *_MATRIX_PRODUCTS) or node.name in float32_nodes:
            continue
        if not float32_names.issuperset(node.input[:2]):
            continue
        product = _Product(node, (writer.constant(node.input[0]), writer.constant(node.input[1])))
        if product.activations:
            products.append(product)
    return products


def _select_products(products: Sequence[_Product], lowest: str) -> tuple[list[_Product], list[str]]:
    """Choose the products that can be quantised, and write notes on the others."""
    chosen: list[_Product] = []
    refused: dict[str, list[Any]] = {}
    for product in products:
        if reason := _reason_against(product, lowest):
            refused.setdefault(reason, []).append(product.node)
        else:
            chosen.append(product)
    return chosen, [_float32_note(nodes, reason) for reason, nodes in refused.items()]


def _reason_against(product: _Product, lowest: str) -> str:
    """Say why a node can't be quantised, or ""."""
    if product.node.op_type in _CONVOLUTIONS and product.constants[1] is None:
        return "a convolution whose weight is computed"
    rules = PRECISION_TYPES[lowest].quantization
    if product.node.op_type in rules.float32_operators:
        return rules.float32_operators[product.node.op_type]
    if rules.float32_activation_products and len(product.activations) == 2:
        return rules.float32_activation_products
    if any(value is not None and not np.isfinite(value).all() for value in product.constants):
        return "a weight is NaN or infinite"
    return ""


def _refuse_convolutions(nodes: Sequence[Any], lowest: str, fix: str) -> None:
    """Refuse convolutions in a type in which TensorRT-RTX builds only matrix products."""
    if not nodes:
        return
    listed: list[UnsupportedNode] = []
    for node in nodes:
        origin = origin_of(node)
        listed.append(
            UnsupportedNode(node.op_type, node.name, origin.module, origin.source, f"no {lowest} convolution")
        )
    raise UnsupportedOperatorError(
        "TensorRT-RTX",
        nodes=listed,
        got=f"{len(nodes)} convolution{'s' if len(nodes) > 1 else ''} that it can't build in {lowest}",
        allowed=f"{lowest} matrix products",
        fix=fix,
    )


def _or_keep_fp32(nodes: Sequence[Any], lowest: str) -> str:
    modules = dict.fromkeys(origin_of(node).module for node in nodes)
    return f", or {lowest} with keep_fp32={list(modules)!r}" if modules and all(modules) else ""


def _quantized_convolutions(model: Any) -> list[Any]:
    """Find the convolutions whose inputs the model itself quantises to int8."""
    import onnx

    makers = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            types[node.output[0]] = node.attribute[0].t.data_type

    def is_int8(name: str) -> bool:
        dequantizing = makers.get(name)
        if dequantizing is None or dequantizing.op_type != "DequantizeLinear":
            return False
        quantizing = makers.get(dequantizing.input[0])
        attributes: Iterable[Any] = () if quantizing is None else quantizing.attribute
        by_zero_point = [types[zero] for zero in dequantizing.input[2:] if zero in types]
        by_constant = [types[dequantizing.input[0]]] if dequantizing.input[0] in types else []
        by_attribute = [attribute.i for attribute in attributes if attribute.name == "output_dtype"]
        element_type = next(iter([*by_zero_point, *by_constant, *by_attribute]), onnx.TensorProto.UINT8)
        return element_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

    return [node for node in model.graph.node if node.op_type in _CONVOLUTIONS and is_int8(node.input[0])]


def _write_quantized(
    writer: QuantizedWriter,
    products: Sequence[_Product],
    source: Path,
    precision: Precision,
    batches: Iterable[Mapping[str, NDArray[Any]]],
) -> list[str]:
    """Calibrate, and put Q and DQ around the products' inputs; returns notes."""
    if not products:
        return ["nothing is quantised: the model has no float32 convolution or matrix product with weights left for it"]
    row = PRECISION_TYPES[precision.dtype]
    methods = row.quantization.methods
    method = precision.method if precision.method in methods else methods[0]
    rule = RangeRule(method, precision.percentile, levels=int(row.largest) + 1)
    names = list(dict.fromkeys(name for product in products for name in product.activations))
    ranges = calibrate_ranges(load_model(source), names, batches, rule)
    by_max: list[Any] = []
    without_range: dict[str, list[Any]] = {}
    for product in products:
        found = [ranges[name] for name in product.activations]
        if problem := next((each.problem for each in found if each.problem), ""):
            without_range.setdefault(f"what enters {problem}", []).append(product.node)
            continue
        if any(each.by_max for each in found):
            by_max.append(product.node)
        for position, value in enumerate(product.constants):
            name = product.node.input[position]
            if value is None:
                writer.quantize_activation(product.node, position, ranges[name].threshold)
            else:
                axis = channel_axis(product.node, position, value.shape)
                writer.quantize_weight(product.node, position, value, axis)
    notes = [_float32_note(nodes, reason) for reason, nodes in without_range.items()]
    if by_max:
        notes.append(f"{_names(by_max)}: method 'max' instead of {method!r}, which has too few values to go by")
    if precision.method != method:
        takers = [name for name, row in PRECISION_TYPES.items() if precision.method in row.quantization.methods]
        notes.append(
            f"method {precision.method!r} is for {' and '.join(takers)}; {precision.dtype} takes the largest value"
        )
    return notes


def _write_blocks(writer: QuantizedWriter, products: Sequence[_Product]) -> list[str]:
    """Put int4 weights into matrix products; returns notes."""
    indivisible: list[Any] = []
    count = 0
    for product in products:
        value = product.constants[1]
        if product.node.op_type not in _MATRIX_PRODUCTS or value is None or value.ndim != 2:
            continue
        if not np.isfinite(value).all():
            continue
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in product.node.attribute)
        inputs = value.shape[1 if is_transposed else 0]
        block = next((size for size in _BLOCK_SIZES if inputs and inputs % size == 0), None)
        if block is None:
            indivisible.append(product.node)
        else:
            writer.quantize_blocks(product.node, value, block)
            count += 1
    notes = [_float32_note(indivisible, f"its inputs are no multiple of {_BLOCK_SIZES[-1]}")] if indivisible else []
    return notes if count else [*notes, "nothing is quantised: the model has no weights for int4"]


def _names(nodes: Sequence[Any]) -> str:
    """List nodes, by their torch modules where these are known."""
    names = list(dict.fromkeys(origin_of(node).module or node.name for node in nodes))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def _float32_note(nodes: Sequence[Any], reason: str) -> str:
    return f"{_names(nodes)}: stays in float32, {reason}"


def _publish(model: Any, target: Path) -> None:
    """Write beside the target, then rename. The data file goes first, since the model refers to it."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        save_model(model, Path(folder) / target.name)
        data = Path(folder) / f"{target.name}.data"
        if data.exists():
            os.replace(data, target.with_name(data.name))
        os.replace(Path(folder) / target.name, target)
