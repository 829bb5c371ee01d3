"""Recurrent nodes become loops behind one product of the whole input, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.builder.rewrites.builder_input import changed_by
from tests.support import onnx_models
from torch2engine.builder.parser_input import parser_input
from torch2engine.builder.rewrites.recurrent_layers_to_scans import scan_recurrent_layers

SIZE, HIDDEN = 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def save(
    folder: Path,
    kind: str,
    *,
    direction: str = "forward",
    dtype: int = TensorProto.FLOAT,
    opset: int = 22,
    takes_states: bool = True,
    has_bias: bool = True,
    lengths: bool = False,
    peepholes: bool = False,
    results: tuple[str, ...] = ("y", "h"),
    **attributes: Any,
) -> Path:
    """A file with one layer, whose time and batch are dynamic."""
    directions = 2 if direction == "bidirectional" else 1
    random = np.random.default_rng(0)
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    width = GATES[kind] * HIDDEN
    weights = {
        "w": random.standard_normal((directions, width, SIZE)).astype(numpy_type),
        "r": random.standard_normal((directions, width, HIDDEN)).astype(numpy_type),
        "b": random.standard_normal((directions, 2 * width)).astype(numpy_type),
        "p": random.standard_normal((directions, 3 * HIDDEN)).astype(numpy_type),
    }
    state: Any = (dtype, [directions, "batch", HIDDEN])
    inputs: dict[str, Any] = {"x": (dtype, ["time", "batch", SIZE])}
    inputs |= {name: state for name in ("h0", "c0")[: 2 if kind == "LSTM" else 1] if takes_states}
    names = ["x", "w", "r", "b" if has_bias else "", "lengths" if lengths else ""]
    names += [name if name in inputs else "" for name in ("h0", "c0")[: 2 if kind == "LSTM" else 1]]
    if lengths:
        inputs["lengths"] = (TensorProto.INT32, ["batch"])
    if peepholes:
        names.append("p")
    every = {"y": (dtype, ["time", directions, "batch", HIDDEN]), "h": state, "c": state}
    every_attribute: dict[str, Any] = ({"linear_before_reset": 1} if kind == "GRU" else {}) | attributes
    node = helper.make_node(
        kind,
        names,
        [name if name in results else "" for name in ("y", "h", "c")[: 3 if kind == "LSTM" else 2]],
        name="layer",
        hidden_size=HIDDEN,
        direction=direction,
        **every_attribute,
    )
    used = {name: weight for name, weight in weights.items() if name in names}
    outputs = {name: every[name] for name in results}
    return onnx_models.save(folder / "layer.onnx", [node], inputs, outputs, used, opset=opset)


def answers(model: bytes, steps: int = 5) -> list[Any]:
    """What ONNX Runtime answers for a batch of 2."""
    session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    sizes: dict[Any, Any] = {"time": steps, "batch": 2}
    feeds: dict[str, Any] = {
        value.name: random.standard_normal([sizes.get(size, size) for size in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    return list(session.run(None, feeds))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "LSTM", "results": ("y", "h", "c")},
        {"kind": "LSTM", "direction": "bidirectional", "results": ("y", "c")},
        {"kind": "LSTM", "direction": "reverse", "takes_states": False},
        {"kind": "LSTM", "has_bias": False, "activations": ["Sigmoid", "Tanh", "Tanh"]},
        {"kind": "GRU"},
        {"kind": "GRU", "direction": "bidirectional", "takes_states": False, "results": ("h",)},
        {"kind": "GRU", "has_bias": False},
        {"kind": "RNN", "direction": "bidirectional", "results": ("y",)},
        {"kind": "RNN", "activations": ["Relu"]},
        {"kind": "RNN", "opset": 14, "layout": 0},
    ],
    ids=str,
)
def test_layer_becomes_a_loop_with_the_same_answers(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    """In every direction, from given states or zeros, at every length; weights keep their names."""
    path = save(tmp_path, **options)
    changed = changed_by(scan_recurrent_layers, path)
    assert changed is not None
    model = onnx.load_model_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node}.isdisjoint(GATES)
    before = onnx.load(str(path))
    assert [weight.name for weight in model.graph.initializer] == [weight.name for weight in before.graph.initializer]
    for found, expected in zip(answers(changed, steps), answers(path.read_bytes(), steps), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_loop_holds_no_product_with_the_input(tmp_path: Path) -> None:
    """One product in the loop, which has the node's name, and one for all steps; other names begin with it."""
    changed = changed_by(scan_recurrent_layers, save(tmp_path, "LSTM", direction="bidirectional"))
    assert changed is not None
    graph = onnx.load_model_from_string(changed).graph
    (loop,) = (node for node in graph.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert [node.name for node in body.node if node.op_type == "MatMul"] == ["layer"]
    assert [node.op_type for node in graph.node].count("MatMul") == 1
    assert all(node.name.startswith("layer") for node in (*graph.node, *body.node))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_loop_has_the_type_of_the_layer(tmp_path: Path, dtype: int) -> None:
    """The zeros before the first step too."""
    path = save(tmp_path, "LSTM", dtype=dtype, takes_states=False)
    changed = changed_by(scan_recurrent_layers, path)
    assert changed is not None
    onnx.checker.check_model(onnx.load_model_from_string(changed), full_check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "LSTM", "lengths": True},
        {"kind": "LSTM", "peepholes": True},
        {"kind": "LSTM", "clip": 1.0},
        {"kind": "LSTM", "input_forget": 1},
        {"kind": "LSTM", "activations": ["Sigmoid", "Relu", "Tanh"]},
        {"kind": "LSTM", "dtype": TensorProto.DOUBLE},
        {"kind": "LSTM", "opset": 12},
        {"kind": "GRU", "linear_before_reset": 0},
        {"kind": "RNN", "layout": 1},
        {"kind": "RNN", "direction": "bidirectional", "activations": ["Tanh", "Relu"]},
        {"kind": "RNN", "activations": ["LeakyRelu"], "activation_alpha": [0.1]},
    ],
    ids=str,
)
def test_what_is_no_layer_of_pytorch_stays(tmp_path: Path, options: dict[str, Any]) -> None:
    """Lengths, peepholes, other arithmetic, other layouts, and opsets that write it in another way."""
    assert changed_by(scan_recurrent_layers, save(tmp_path, **options)) is None


def test_only_tensorrt_rtx_gets_the_loop(tmp_path: Path) -> None:
    """TensorRT has kernels of its own for the operator; a refit replaces the operator's own weights."""
    path = save(tmp_path, "GRU")
    assert parser_input(path, is_rtx=True, cuts_sums=False) is not None
    assert parser_input(path, is_rtx=True, cuts_sums=False, is_refittable=True) is None
    assert parser_input(path, is_rtx=False, cuts_sums=False) is None
