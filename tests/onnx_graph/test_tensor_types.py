"""The types of a graph's tensors, and the precision that these make it."""

from __future__ import annotations

import onnx.parser
import pytest

from torch2engine.onnx_graph.tensor_types import graph_precision

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
