"""ONNX files with one attention, from its linear layers to the one that joins its heads.

Enters: what is special about it. Leaves: the path of a file, and its answers by ONNX's reference. Separate because
several changes before the parser concern such attention, each another part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.support import onnx_models

__all__ = ["BATCH", "ENTRIES", "HEADS", "KEYS", "QUERIES", "answers", "attention", "operators", "read"]

HEADS, QUERIES, KEYS, ENTRIES = 2, 5, 7, 16
WIDTH = HEADS * ENTRIES
BATCH = 4
_MASKS = {"key mask": ["batch", 1, 1, KEYS], "table": [QUERIES, KEYS], "full mask": ["batch", HEADS, QUERIES, KEYS]}


def attention(
    folder: Path,
    form: str = "node",
    *,
    dtype: int = TensorProto.FLOAT16,
    heads: int = HEADS,
    mask: str = "",
    queries: Any = QUERIES,
    keys_of: str = "z",
    is_linear: bool = True,
    has_bias: bool = True,
    is_rotated: bool = False,
    zeroes: Sequence[Any] = (),
    attributes: dict[str, Any] | None = None,
) -> Path:
    """Save an attention of x to z.

    Args:
        folder: where the file goes.
        form: "node", "bias" (products with a constant for each head) or "windows" (and a mask for each of two windows).
        dtype: of all tensors.
        heads: how many.
        mask: a key of `_MASKS`, as an input, for the node.
        queries: how many, or the name of a dynamic axis.
        keys_of: the input that keys and values come from, "z" or "x".
        is_linear: whether linear layers make queries, keys and values; else they are inputs.
        has_bias: whether these layers add one.
        is_rotated: whether something is multiplied with the queries once their heads have been moved.
        zeroes: the shape of a condition by which the answer becomes zero; () for none.
        attributes: further ones of the node.
    """
    random = np.random.default_rng(0)
    number: Any = helper.tensor_dtype_to_np_dtype(dtype)
    keys = queries if keys_of == "x" else KEYS
    weights: dict[str, Any] = {"out": random.standard_normal((WIDTH, 8)).astype(number), "joined": [0, 0, WIDTH]}
    inputs: dict[str, Any] = {"x": (dtype, ["batch", queries, WIDTH])}
    nodes: list[Any] = []
    if is_linear and keys_of == "z":
        inputs["z"] = (dtype, ["batch", KEYS, WIDTH])
    for name, source in {"query": "x", "key": keys_of, "value": keys_of}.items():
        if not is_linear:
            inputs[name] = (dtype, ["batch", heads, queries if name == "query" else keys, WIDTH // heads])
            continue
        weights[f"{name}.weight"] = (random.standard_normal((WIDTH, WIDTH)) / 6).astype(number)
        weights[f"{name}.bias"] = random.standard_normal(WIDTH).astype(number)
        weights["heads"] = [0, 0, heads, WIDTH // heads]
        added = f"{name}.linear" if has_bias else f"{name}.product"
        nodes += [
            helper.make_node("MatMul", [source, f"{name}.weight"], [f"{name}.product"], name=name),
            *([helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [added])] if has_bias else []),
            helper.make_node("Reshape", [added, "heads"], [f"{name}.heads"]),
            helper.make_node("Transpose", [f"{name}.heads"], [name], perm=[0, 2, 1, 3]),
        ]
    query = "query"
    if is_rotated:
        weights["angle"] = np.asarray(0.5, number)
        nodes.append(helper.make_node("Mul", ["query", "angle"], ["turned"]))
        query = "turned"
    if form == "node":
        masks = [mask] if mask else []
        inputs |= {mask: (dtype, _MASKS[mask])} if mask else {}
        options = attributes or {"scale": 0.25}
        nodes.append(helper.make_node("Attention", [query, "key", "value", *masks], ["a"], name="attention", **options))
    else:
        nodes += _products(form, query, heads, keys, weights, number)
    answer = "a"
    if zeroes:
        inputs["kept"] = (TensorProto.BOOL, list(zeroes))
        weights["zero"] = np.asarray(0, number)
        nodes.append(helper.make_node("Where", ["kept", "a", "zero"], ["chosen"], name="zeroes"))
        answer = "chosen"
    nodes += [
        helper.make_node("Transpose", [answer], ["swapped"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["swapped", "joined"], ["rows"]),
        helper.make_node("MatMul", ["rows", "out"], ["product"], name="out"),
        helper.make_node("Add", ["product", "product"], ["y"], name="last"),
    ]
    path = onnx_models.save(
        folder / "attention.onnx",
        nodes,
        inputs,
        {"y": (dtype, ["batch", queries, 8])},
        {name: np.asarray(value) for name, value in weights.items()},
        opset=23 if form == "node" else 22,
    )
    _write_shapes(path)
    return path


def _write_shapes(path: Path) -> None:
    """Add the shapes of all tensors, with a name for every size that is not fixed, as an export has them."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    for value in model.graph.value_info:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = size.dim_param.replace("unk__", "size_")
    onnx.save(model, path)


def _products(form: str, query: str, heads: int, keys: Any, weights: dict[str, Any], number: Any) -> list[Any]:
    """The products with a softmax between them, as torchvision's windows have them."""
    random = np.random.default_rng(1)
    weights |= {
        "factor": np.asarray(0.25, number),
        "bias": random.standard_normal((1, heads, QUERIES, keys)).astype(number),
    }
    scores = "biased"
    windows: list[Any] = []
    if form == "windows":
        weights |= {"parted": [-1, 2, heads, QUERIES, keys], "whole": [-1, heads, QUERIES, keys]}
        weights["windows"] = random.standard_normal((1, 2, 1, QUERIES, keys)).astype(number)
        windows = [
            helper.make_node("Reshape", ["biased", "parted"], ["images"]),
            helper.make_node("Add", ["images", "windows"], ["masked"]),
            helper.make_node("Reshape", ["masked", "whole"], ["scores"]),
        ]
        scores = "scores"
    return [
        helper.make_node("Mul", [query, "factor"], ["scaled"]),
        helper.make_node("Transpose", ["key"], ["turned_key"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned_key"], ["raw"], name="scores"),
        helper.make_node("Add", ["raw", "bias"], ["biased"]),
        *windows,
        helper.make_node("Softmax", [scores], ["weights"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["weights", "value"], ["a"], name="attention"),
    ]


def read(model: bytes | None) -> Any:
    """A model, once it has been found valid."""
    assert model is not None
    proto = onnx.load_model_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def answers(model: Any) -> Any:
    """The answer to random inputs, in float64; of the conditions about half are true."""
    random = np.random.default_rng(2)
    feeds: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [
            size.dim_value or {"batch": BATCH}.get(size.dim_param, QUERIES) for size in value.type.tensor_type.shape.dim
        ]
        numbers = random.standard_normal(shape)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = numbers > 0 if dtype == np.dtype(bool) else numbers.astype(dtype)
    results: Any = ReferenceEvaluator(model).run(None, feeds)
    return results[0].astype(np.float64)
