"""Attention in half precision becomes one node with the same answers; what has no fused kernel stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

import torch2engine as t2e
from tests.builder.rewrites.builder_input import changed_by
from tests.support import onnx_models
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.attention_to_one_node import attention_obstacles, fuse_attention

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
BATCH = t2e.Axis("batch", 1, 2, 8)


def hand_made(
    folder: Path,
    *,
    dtype: int = HALF,
    opset: int = 22,
    size: int = 16,
    factor: float = 0.25,
    axis: int = -1,
    order: tuple[int, ...] = (0, 1, 3, 2),
    mask: list[Any] | None = None,
    returns_weights: bool = False,
    key_batch: Any = "batch",
) -> Path:
    """Attention as many write it: the scores are divided after the product."""
    half = np.float16 if dtype == HALF else np.float32
    nodes = [
        helper.make_node("Transpose", ["key"], ["swapped"], perm=order),
        helper.make_node("MatMul", ["query", "swapped"], ["product"]),
        helper.make_node("Mul", ["product", "factor"], ["scores"]),
        *([] if mask is None else [helper.make_node("Add", ["mask", "scores"], ["masked"])]),
        helper.make_node("Softmax", ["scores" if mask is None else "masked"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "value"], ["y"], name="attention"),
    ]
    inputs: dict[str, Any] = {"query": (dtype, ["batch", 2, 5, size])}
    inputs |= {name: (dtype, [key_batch, 2, 7, size]) for name in ("key", "value")}
    if order != (0, 1, 3, 2):
        inputs["key"] = (dtype, ["batch", 7, 2, size])
    if mask is not None:
        inputs["mask"] = (dtype, mask)
    outputs: dict[str, Any] = {"y": (dtype, ["batch", 2, 5, size])}
    if returns_weights:
        outputs["weights"] = (dtype, ["batch", 2, 5, 7])
    return onnx_models.save(
        folder / "attention.onnx", nodes, inputs, outputs, {"factor": np.asarray(factor, half)}, opset=opset
    )


def attention_nodes(model: bytes | None) -> list[Any]:
    """The Attention nodes of a model that is valid ONNX."""
    assert model is not None
    proto = onnx.load_model_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    return [node for node in proto.graph.node if node.op_type == "Attention"]


def answers(model: bytes, feeds: Mapping[str, Any]) -> Any:
    """The first output by ONNX's reference; ONNX Runtime 1.30 takes no mask that has one row for all queries."""
    results: Any = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, dict(feeds))
    return results[0].astype(np.float64)


def feeds_of(path: Path) -> dict[str, Any]:
    """Random numbers for every input, with a batch of 2."""
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        shape = [dimension.dim_value or 2 for dimension in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = random.standard_normal(shape).astype(dtype)
    return feeds


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": ["batch", 1, 1, 7]},
        {"mask": [5, 7]},
        {"mask": ["batch", 2, 5, 7]},
        {"order": (0, 2, 3, 1)},
        {"factor": 0.5, "opset": 21},
        {"opset": 23},
    ],
    ids=str,
)
def test_attention_becomes_one_node_with_the_same_answers(tmp_path: Path, options: dict[str, Any]) -> None:
    """Whatever the mask, the scale and the order of the key's axes; and the node keeps the last product's name."""
    path = hand_made(tmp_path, **options)
    fused = changed_by(fuse_attention, path)
    (node,) = attention_nodes(fused)
    assert node.name == "attention"
    assert fused is not None
    feeds = feeds_of(path)
    expected = answers(path.read_bytes(), feeds)
    # float16 rounds by 5e-4; the two forms round at different places.
    assert np.linalg.norm(answers(fused, feeds) - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": FLOAT},
        {"opset": 20},
        {"opset": 24},
        {"size": 12},
        {"size": 264},
        {"factor": -1.0},
        {"axis": 2},
        {"returns_weights": True},
        {"mask": ["other", 1, 1, 7]},
        {"key_batch": 1},
    ],
    ids=str,
)
def test_what_has_no_fused_kernel_stays(tmp_path: Path, options: dict[str, Any]) -> None:
    """Types, sizes and opsets without a kernel, weights that somebody reads, shapes that broadcast the other way."""
    assert changed_by(fuse_attention, hand_made(tmp_path, **options)) is None


def test_key_that_is_not_swapped_stays(tmp_path: Path) -> None:
    """A product with the key as it is has another meaning."""
    assert changed_by(fuse_attention, hand_made(tmp_path, order=(0, 2, 1, 3))) is None


def key_in_three_dimensions(folder: Path, *, perm: tuple[int, ...] = (0, 2, 1), is_swapped_back: bool = True) -> Path:
    """Attention whose key loses a dimension for the Transpose, with sizes from its own shape."""
    back = ["size", "length"] if is_swapped_back else ["length", "size"]
    nodes = [
        helper.make_node("Shape", ["key"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["leading"]),
        helper.make_node("Slice", ["shape", "two", "three"], ["length"]),
        helper.make_node("Slice", ["shape", "three", "four"], ["size"]),
        helper.make_node("Concat", ["rest", "length", "size"], ["flat"], axis=0),
        helper.make_node("Reshape", ["key", "flat"], ["matrices"]),
        helper.make_node("Transpose", ["matrices"], ["turned"], perm=perm),
        helper.make_node("Concat", ["leading", *back], ["full"], axis=0),
        helper.make_node("Reshape", ["turned", "full"], ["swapped"]),
        helper.make_node("MatMul", ["query", "swapped"], ["product"]),
        helper.make_node("Mul", ["product", "factor"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "value"], ["y"], name="attention"),
    ]
    inputs: dict[str, Any] = {name: (HALF, ["batch", 2, 16, 16]) for name in ("query", "key", "value")}
    numbers = {"zero": 0, "two": 2, "three": 3, "four": 4, "rest": -1}
    constants = {name: np.array([number]) for name, number in numbers.items()}
    return onnx_models.save(
        folder / "attention.onnx",
        nodes,
        inputs,
        {"y": (HALF, ["batch", 2, 16, 16])},
        {"factor": np.asarray(0.25, np.float16), **constants},
        opset=22,
    )


def test_key_that_is_swapped_in_three_dimensions_is_recognised(tmp_path: Path) -> None:
    """Its sizes, and their order, must be those of the key: here all forms have the same shape."""
    path = key_in_three_dimensions(tmp_path)
    feeds = feeds_of(path)
    found = changed_by(fuse_attention, path)
    assert len(attention_nodes(found)) == 1
    assert found is not None
    np.testing.assert_allclose(answers(found, feeds), answers(path.read_bytes(), feeds), rtol=2e-2, atol=2e-3)
    assert changed_by(fuse_attention, key_in_three_dimensions(tmp_path, perm=(0, 1, 2))) is None
    assert changed_by(fuse_attention, key_in_three_dimensions(tmp_path, is_swapped_back=False)) is None


@pytest.mark.parametrize(
    ("folded", "unfolded", "count"),
    [((6, 5, 16), (3, 2, 16, 5), 1), ((-1, 5, 16), (3, 2, 16, 5), 1), ((6, 5, 16), (2, 3, 16, 5), 0)],
)
def test_key_of_constant_sizes_is_recognised(
    tmp_path: Path, folded: tuple[int, ...], unfolded: tuple[int, ...], count: int
) -> None:
    """The form of an export without dynamic axes; other sizes behind the Transpose would mix batch and heads."""
    queries = [*unfolded[:2], 7, 16]
    nodes = [
        helper.make_node("Reshape", ["key", "folded"], ["matrices"]),
        helper.make_node("Transpose", ["matrices"], ["turned"], perm=(0, 2, 1)),
        helper.make_node("Reshape", ["turned", "unfolded"], ["swapped"]),
        helper.make_node("MatMul", ["query", "swapped"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "value"], ["y"], name="attention"),
    ]
    inputs: dict[str, Any] = {"query": (HALF, queries), "key": (HALF, [3, 2, 5, 16])}
    inputs["value"] = (HALF, [*unfolded[:2], 5, 16])
    shapes = {"folded": np.array(folded), "unfolded": np.array(unfolded)}
    path = onnx_models.save(tmp_path / "static.onnx", nodes, inputs, {"y": (HALF, queries)}, shapes, opset=22)
    found = changed_by(fuse_attention, path)
    assert (found is not None) == bool(count)
    if found is not None:
        assert len(attention_nodes(found)) == count
        feeds = feeds_of(path)
        np.testing.assert_allclose(answers(found, feeds), answers(path.read_bytes(), feeds), rtol=2e-2, atol=2e-3)


class Heads(nn.Module):
    """Attention as PyTorch's users write it: without a mask, with a boolean one, and causal with shared heads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(32, 2, 32, dropout=0.0, batch_first=True)
        self.project = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        query, key, value = self.project(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        shared = F.scaled_dot_product_attention(seen, key[:, :1], value[:, :1], is_causal=True, enable_gqa=True)
        return shared.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("precision", "count"), [("fp32", 3), ("fp16", 2)])
def test_forms_that_export_writes_are_recognised(tmp_path: Path, precision: str, count: int) -> None:
    """PyTorch's three ways to call attention, in a model of half type and in one that export lowers."""
    # The lowered one keeps the constant causal mask in float32, because float16 can't hold its lowest value.
    torch.manual_seed(0)
    model = Heads().eval()
    sample = (torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool))
    if precision == "fp32":
        model, sample = model.half(), (sample[0].half(), sample[1])
    options = {} if precision == "fp32" else {"precision": precision}
    t2e.export(model, sample, {"x": {0: BATCH}, "mask": {0: BATCH}}, **options).save(tmp_path / "heads.t2e")
    assert len(attention_nodes(changed_by(fuse_attention, tmp_path / "heads.t2e" / "model.onnx"))) == count


def test_attention_without_a_fused_kernel_is_built_in_parts(tmp_path: Path) -> None:
    """TensorRT-RTX 1.6 has no fused kernel for float32, and alone would refuse a file that has the node."""
    nodes = [
        *(helper.make_node("Add", [name, name], [f"{name}2"]) for name in ("query", "key", "value")),
        helper.make_node("Attention", ["query2", "key2", "value2"], ["y"]),
    ]
    tensors = {name: (FLOAT, ["batch", 2, 4, 16]) for name in ("query", "key", "value")}
    path = onnx_models.save(tmp_path / "float.onnx", nodes, tensors, {"y": (FLOAT, ["batch", 2, 4, 16])}, opset=23)
    assert t2e.build(path, {"batch": (1, 2, 4)}).plan_buffer()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"dtype": FLOAT}, "it is not in float16 or bfloat16, for which alone there are fused kernels"),
        ({"opset": 20}, "the graph is not in one of the opsets 21 to 23"),
        ({"size": 12}, "its heads have 12 entries; fused kernels take 16 to 256, in multiples of 8"),
        ({"axis": 1}, "its softmax runs along another axis than the last of four"),
        ({"returns_weights": True}, "something else than the product with the values reads its weights"),
        ({"mask": ["other", 1, 1, 7]}, "its mask has a shape that may not stretch to that of the scores"),
        ({"key_batch": "other"}, "its query, key and value differ in batch or heads"),
    ],
    ids=str,
)
def test_obstacle_is_named(tmp_path: Path, options: dict[str, Any], reason: str | None) -> None:
    """What deploy() and `inspect` say of attention that has no fused kernel."""
    found = attention_obstacles(onnx.load(str(hand_made(tmp_path, **options))), tmp_path)
    assert [text.partition(", or the number")[0] for text in found.values()] == ([] if reason is None else [reason])


def test_shapes_are_inferred_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be written and read twice; the given model keeps them, and its own shapes."""
    infer = onnx.shape_inference.infer_shapes
    sizes: list[int] = []

    def noted(model: Any, **options: Any) -> Any:
        sizes.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", noted)
    table = np.ones((64, 16), np.float16)
    nodes = [helper.make_node("MatMul", ["y", "table"], ["narrow"])]
    model = onnx.load(hand_made(tmp_path, size=64))
    model.graph.node.extend(nodes)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("narrow", HALF, ["batch", 2, 5, 16]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    before = model.SerializeToString(deterministic=True)
    fused = fuse_attention(model, tmp_path)
    assert fused is not None
    assert len(sizes) == 1 and sizes[0] < table.nbytes < len(before)
    assert model.SerializeToString(deterministic=True) == before
    assert len(attention_nodes(fused.SerializeToString())) == 1
    (kept,) = [tensor for tensor in fused.graph.initializer if tensor.name == "table"]
    assert np.array_equal(onnx.numpy_helper.to_array(kept), table)


def in_windows(
    folder: Path,
    *,
    parted: tuple[int, ...] = (-1, 4, 2, 8, 8),
    joined: tuple[int, ...] = (-1, 2, 8, 8),
    mask: tuple[int, ...] = (1, 4, 1, 8, 8),
    is_constant: bool = True,
) -> Path:
    """Attention in shifted windows: a bias for each head, and in five dimensions a mask for each window."""
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {"bias": random.standard_normal((1, 2, 8, 8)).astype(np.float16)}
    constants |= {"parted": np.array(parted), "joined": np.array(joined)}
    nodes = [
        helper.make_node("Transpose", ["key"], ["swapped"], perm=(0, 1, 3, 2)),
        helper.make_node("MatMul", ["query", "swapped"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Reshape", ["biased", "parted"], ["images"]),
        helper.make_node("Add", ["images", "mask"], ["masked"]),
        helper.make_node("Reshape", ["masked", "joined"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["weights", "value"], ["y"], name="attention"),
    ]
    inputs: dict[str, Any] = {name: (HALF, ["windows", 2, 8, 16]) for name in ("query", "key", "value")}
    if is_constant:
        constants["mask"] = random.standard_normal(mask).astype(np.float16)
    else:
        inputs["mask"] = (HALF, list(mask))
    return onnx_models.save(
        folder / "windows.onnx", nodes, inputs, {"y": (HALF, ["windows", 2, 8, 16])}, constants, opset=22
    )


def test_attention_in_windows_is_fused_as_it_is(tmp_path: Path) -> None:
    """The builder makes the same kernel of it without the node, so that nothing is in its way."""
    path = in_windows(tmp_path)
    assert changed_by(fuse_attention, path) is None
    assert attention_obstacles(onnx.load(str(path)), tmp_path) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"is_constant": False},
        {"parted": (-1, 4, 2, 4, 16), "mask": (1, 1, 1, 4, 16)},
        {"parted": (-1, 2, 4, 8, 8), "mask": (1, 2, 4, 8, 8)},
    ],
    ids=str,
)
def test_other_sums_in_five_dimensions_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    """A mask that is computed, and axes that are no windows: for these the builder fuses nothing."""
    found = attention_obstacles(onnx.load(str(in_windows(tmp_path, **options))), tmp_path)
    assert found == {"softmax": "something else than a scale and a mask stands before its softmax"}


def test_constant_bias_of_heads_is_fused_as_it_is(tmp_path: Path) -> None:
    """Windows that are not shifted. A constant for all heads becomes an input of the node, as any other mask."""
    for heads in (2, 1):
        path = hand_made(tmp_path, mask=[1, heads, 5, 7])
        model = onnx.load(str(path))
        (mask,) = (value for value in model.graph.input if value.name == "mask")
        model.graph.input.remove(mask)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, heads, 5, 7), np.float16), "mask"))
        onnx.save(model, path)
        assert (changed_by(fuse_attention, path) is None) == (heads == 2)
        assert attention_obstacles(onnx.load(str(path)), tmp_path) == {}


def test_attention_stays_products_where_that_form_is_asked_for(tmp_path: Path) -> None:
    """BuildConfig(attention="products") leaves it out of TensorRT-RTX's input; nothing else changes here."""
    path = hand_made(tmp_path)
    assert len(attention_nodes(parser_input(path, is_rtx=True, cuts_sums=False))) == 1
    assert parser_input(path, is_rtx=True, cuts_sums=False, fuses_attention=False) is None
    assert parser_input(path, is_rtx=False, cuts_sums=False) is None
