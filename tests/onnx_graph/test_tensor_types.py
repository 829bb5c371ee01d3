"""The types of a graph's tensors, and the precision that these make it."""

from __future__ import annotations

import onnx.parser
import pytest

from torch2engine.onnx_graph.tensor_types import graph_precision, mentions_type

HEADER = '<ir_version: 10, opset_import: ["" : 20]> graph '
GRAPHS = {
    "float32": ("(float[b,4] x) => (float[b,4] y) { y = Relu(x) }", "fp32"),
    "float16": ("(float16[b,4] x) => (float16[b,4] y) { y = Relu(x) }", "fp16"),
    "bfloat16": ("(bfloat16[b,4] x) => (bfloat16[b,4] y) { y = Relu(x) }", "bf16"),
    "float16 between casts": (
        "(float[b,4] x) => (float[b,4] y) { h = Cast <to = 10> (x) r = Relu(h) y = Cast <to = 1> (r) }",
        "fp16",
    ),
    "both half types": (
        "(float16[b,4] x, bfloat16[b,4] z) => (float16[b,4] y, bfloat16[b,4] w) { y = Relu(x) w = Relu(z) }",
        "bf16",
    ),
    "input of float16 alone": ("(float16[b,4] x) => (float[b,4] y) { h = Cast <to = 1> (x) y = Relu(h) }", "fp32"),
    "input of bytes": ("(uint8[b,4] x) => (float[b,4] y) { h = Cast <to = 1> (x) y = Relu(h) }", "fp32"),
    "integers": ("(int8[b,4] x) => (int8[b,4] y) { y = Identity(x) }", "fp32"),
    "quantised to int8": (
        "(float[b,4] x, float s, int8 z) => (float[b,4] y)"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }",
        "int8",
    ),
    "quantised to uint8 in float16": (
        "(float16[b,4] x, float16 s, uint8 z) => (float16[b,4] y)"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }",
        "int8",
    ),
    "quantised to float8": (
        "(float[b,4] x, float s, float8e4m3fn z) => (float[b,4] y)"
        " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }",
        "fp8",
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_precision_of_a_graph_is_the_loosest_that_it_computes_in(graph: str) -> None:
    """Types that are computed with count; those that are only stored or handed in don't."""
    text, precision = GRAPHS[graph]
    assert graph_precision(onnx.parser.parse_model(HEADER + text)) == precision


def test_weights_stored_in_float16_leave_the_precision_float32() -> None:
    """A file may be half as large and still be computed in float32."""
    text = "(float[b,2] x) => (float[b,2] y) <float16[2,2] w = {1, 2, 3, 4}>"
    model = onnx.parser.parse_model(HEADER + text + " { v = Cast <to = 1> (w) y = MatMul(x, v) }")
    assert graph_precision(model) == "fp32"


PLACES = {
    "input": "(uint8[b] x) => (float[b] y) { y = Cast <to = 1> (x) }",
    "output": "(float[b] x) => (uint8[b] y) { y = my.domain.Round(x) }",
    "weight": "(float[b] x) => (float[b] y) <uint8[1] w = {1}> { v = Cast <to = 1> (w) y = Add(x, v) }",
    "constant": "(float[b] x) => (float[b] y) "
    "{ c = Constant <value = uint8[1] {1}> () v = Cast <to = 1> (c) y = Add(x, v) }",
    "cast": "(float[b] x) => (float[b] y) { v = Cast <to = 2> (x) y = Cast <to = 1> (v) }",
    "random numbers": "(float[b] x) => (float[b] y) { v = EyeLike <dtype = 2> (x) y = Cast <to = 1> (v) }",
    "branch": "(float[b] x, bool c) => (float[b] y) { y = If (c) <"
    "then_branch = g1 () => (float[b] z) { v = Cast <to = 2> (x) z = Cast <to = 1> (v) }, "
    "else_branch = g2 () => (float[b] w) { w = Relu(x) }> }",
}


@pytest.mark.parametrize("place", PLACES)
def test_type_is_found_wherever_it_begins(place: str) -> None:
    """No inference is needed to say that a model may have bytes, and another type is not mistaken for them."""
    model = onnx.parser.parse_model(HEADER + PLACES[place])
    assert mentions_type(model, (onnx.TensorProto.UINT8,))
    assert not mentions_type(model, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))


def test_type_inside_a_function_of_the_model_is_found() -> None:
    """A function's nodes name types as the graph's do."""
    body = "bytes (x) => (y) { v = Cast <to = 2> (x) y = Cast <to = 1> (v) }"
    functions = f'<domain: "my.domain", opset_import: ["" : 20]> {body}'
    header = HEADER.replace("20]", '20, "my.domain" : 1]')
    model = onnx.parser.parse_model(f"{header}(float[b] x) => (float[b] y) {{ y = my.domain.bytes(x) }} {functions}")
    assert mentions_type(model, (onnx.TensorProto.UINT8,))
