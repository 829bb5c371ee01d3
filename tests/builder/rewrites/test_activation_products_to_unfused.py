"""Linear layers, their activations and products are parted for TensorRT-RTX, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.builder.rewrites.builder_input import changed_by, layers_of
from torch2engine.builder.rewrites.activation_products_to_unfused import separate_activations

HEADER = '<ir_version: 10, opset_import: ["" : 20, "my.domain" : 1]> graph '
IN = "(float[n,4] x, float[4,4] w, float[4] b, float[n,4] d) => (float[n,4] y) "
HALF = IN.replace("float[", "float16[")
FUSED = {
    "relu": IN + "{ u = Gemm(x, w, b) v = Relu(u) y = Mul(v, b) }",
    "relu in float16": HALF + "{ u = Gemm(x, w, b) v = Relu(u) y = Mul(v, b) }",
    "gelu": IN + "{ u = Gemm(x, w, b) v = Gelu(u) y = Mul(v, b) }",
    "computed factor": IN + "{ u = Gemm(x, w, b) v = Gelu(u) z = Sigmoid(d) y = Mul(z, v) }",
    "square": IN + "{ u = Gemm(x, w, b) v = Relu(u) y = Mul(v, v) }",
    "matrix product and bias": IN + "{ m = MatMul(x, w) u = Add(b, m) v = Relu(u) y = Mul(v, b) }",
    "views between": IN
    + "{ u = Gemm(x, w, b) i = Identity(u) v = Relu(i) c = Dropout(v) r = Cast <to = 1> (c) y = Mul(r, b) }",
    "other reader": IN + "{ u = Gemm(x, w, b) v = Relu(u) t = Tanh(v) m = Mul(v, b) y = Add(t, m) }",
    "also an output": IN.replace("(float[n,4] y)", "(float[n,4] y, float[n,4] v)")
    + "{ u = Gemm(x, w, b) v = Relu(u) y = Mul(v, b) }",
}
RIGHT = {
    "convolution": "(float[n,4,3,3] x, float[4,4,1,1] w, float[4] b) => (float[n,4,3,3] y) "
    "{ u = Conv(x, w, b) v = Relu(u) y = Mul(v, v) }",
    "no linear layer": IN + "{ v = Relu(x) y = Mul(v, b) }",
    "no product": IN + "{ u = Gemm(x, w, b) v = Relu(u) y = Add(v, b) }",
    "product before": IN + "{ u = Gemm(x, w, b) v = Mul(u, b) y = Relu(v) }",
    "other activation": IN + "{ u = Gemm(x, w, b) v = Sigmoid(u) y = Mul(v, b) }",
}


def save(folder: Path, text: str, *, typed: bool = False) -> Path:
    """A file with the nodes of the text, with or without the types of values inside."""
    model: Any = onnx.parser.parse_model(HEADER + text)
    for node in model.graph.node:
        node.name = node.output[0]
    untyped: Any = onnx
    path = folder / "model.onnx"
    onnx.save(untyped.shape_inference.infer_shapes(model) if typed else model, path)
    return path


def answers(model: bytes) -> list[np.ndarray]:
    """What ONNX Runtime answers to random inputs."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    inputs = {
        given.name: random.standard_normal([3 if dim == "n" else dim for dim in given.shape]).astype(kinds[given.type])
        for given in session.get_inputs()
    }
    return list(session.run(None, inputs))


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("case", FUSED)
def test_activation_before_a_product_gets_a_zero_added(case: str, typed: bool, tmp_path: Path) -> None:
    """No product reads the activation, but the sum of it and zero; the answers stay, bit for bit."""
    path = save(tmp_path, FUSED[case], typed=typed)
    parted = changed_by(separate_activations, path)
    assert parted is not None
    model = onnx.load_model_from_string(parted)
    onnx.checker.check_model(model, full_check=True)
    (reader,) = [node for node in model.graph.node if "v" in node.input]
    assert (reader.op_type, reader.name.split("/")[0]) == ("Add", "v")
    for found, expected in zip(answers(parted), answers(path.read_bytes()), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_fused_rightly_stays_as_it_is(case: str, tmp_path: Path) -> None:
    """Only linear layers with relu or gelu and a product are changed."""
    assert changed_by(separate_activations, save(tmp_path, RIGHT[case])) is None


def test_operator_of_another_domain_is_no_activation(tmp_path: Path) -> None:
    """A Relu of somebody else's may mean anything."""
    text = IN + "{ u = Gemm(x, w, b) v = my.domain.Relu(u) y = Mul(v, b) }"
    assert changed_by(separate_activations, save(tmp_path, text)) is None


@pytest.mark.parametrize(("precision", "refittable"), [("fp32", False), ("fp32", True), ("tf32", False)])
def test_tensorrt_rtx_reads_the_zero_in_every_kind_of_engine(precision: str, refittable: bool, tmp_path: Path) -> None:
    """No weight has another name, so that engines that can be refitted have it too."""
    layers = layers_of(save(tmp_path, FUSED["relu"]), precision, refittable)
    activation = layers.index("ACTIVATION")
    assert layers[activation + 1 :].count("ELEMENTWISE") == 2  # the sum with zero, and the product
