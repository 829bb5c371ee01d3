"""Operators that compute: what keeps entries apart is so in ONNX Runtime too, what mixes them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.axis_graphs import answers_in_chunks_differ, influence, parse

X = "(float[n, 4] x) => (float[n, 4] y)"
CUBE = "(float[n, 3, 4] x) => (float[n, 3, 4] y)"
IMAGE = "(float[n, 2, 6, 6] x)"

KEEPS: dict[str, str] = {
    "pointwise with a row": f"{X} <float[4] w = {{1, 2, 3, 4}}> {{ y = Add(x, w) }}",
    "pointwise with a scalar": f"{X} <float w = {{2}}> {{ y = Pow(x, w) }}",
    "pointwise of two inputs": "(float[n, 4] x, float[n, 1] z) => (float[n, 4] y) { y = Mul(x, z) }",
    "a lower rank that is broadcast": "(float[3, n] x, float[n] z) => (float[3, n] y) { y = Add(x, z) }",
    "another input without the axis": "(float[n, 4] x, float[1, 4] z) => (float[n, 4] y) { y = Sub(x, z) }",
    "where": f"{X} <float w = {{0}}> {{ c = Greater(x, w)  y = Where(c, x, w) }}",
    "clip": f"{X} <float low = {{-1}}, float high = {{1}}> {{ y = Clip(x, low, high) }}",
    "softmax of a row": f"{X} {{ y = Softmax<axis = 1>(x) }}",
    "softmax by a negative axis": f"{CUBE} {{ y = Softmax<axis = -2>(x) }}",
    "running sum of a row": f"{X} <int64 a = {{-1}}> {{ y = CumSum(x, a) }}",
    "top of a row": "(float[n, 4] x) => (float[n, 2] y) <int64[1] k = {2}> { y, i = TopK(x, k) }",
    "sum of a row": "(float[n, 4] x) => (float[n] y) <int64[1] a = {1}> { y = ReduceSum<keepdims = 0>(x, a) }",
    "mean before the entries": "(float[3, n] x) => (float[n] y) <int64[1] a = {0}> "
    "{ y = ReduceMean<keepdims=0>(x, a) }",
    "reduction of nothing": f"{X} {{ y = ReduceSum<noop_with_empty_axes = 1>(x) }}",
    "best of a row": "(float[n, 4] x) => (float[n, 4] y) { i = ArgMax<axis = 1>(x) f = Cast<to = 1>(i) y = Add(x, f) }",
    "layer norm": f"{CUBE} <float[4] w = {{1, 1, 1, 1}}> {{ y = LayerNormalization<axis = -1>(x, w) }}",
    "batch norm": f"{CUBE} <float[3] w = {{1, 2, 3}}> {{ y = BatchNormalization(x, w, w, w, w) }}",
    "convolution": f"{IMAGE} => (float[n, 1, 5, 5] y) <float[1, 2, 2, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> "
    "{ y = Conv(x, w) }",
    "convolution of single pixels": "(float[1, 2, n] x) => (float[1, 1, n] y) <float[1, 2, 1] w = {1, 2}> "
    "{ y = Conv(x, w) }",
    "pooling": f"{IMAGE} => (float[n, 2, 3, 3] y) {{ y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }}",
    "resizing by scales without the entries": f"{IMAGE} => (float[n, 2, 12, 12] y) <float[2] s = {{2, 2}}> "
    "{ y = Resize<axes = [2, 3]>(x, , s) }",
    "resizing by a scale of one along the entries": f"{IMAGE} => (float[n, 2, 12, 12] y) "
    "<float[4] s = {1, 1, 2, 2}> { y = Resize(x, , s) }",
    "resizing to as many entries": f"{IMAGE} => (float[n, 2, 9, 9] y) <int64[2] s = {{9, 9}}> "
    "{ n = Shape<end = 2>(x) z = Concat<axis = 0>(n, s) y = Resize(x, , , z) }",
    "product with a weight": "(float[n, 4] x) => (float[n, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> "
    "{ y = MatMul(x, w) }",
    "product of stacks": "(float[n, 3, 4] x, float[n, 4, 3] z) => (float[n, 3, 3] y) { y = MatMul(x, z) }",
    "product of a stack with one of ones": "(float[n, 3, 4] x, float[1, 4, 3] z) => (float[n, 3, 3] y) "
    "{ y = MatMul(x, z) }",
    "product along rows of a stack": "(float[3, n, 4] x, float[4, 3] z) => (float[3, n, 3] y) { y = MatMul(x, z) }",
    "columns of the right": "(float[2, 4] x, float[4, n] z) => (float[2, n] y) { y = MatMul(x, z) }",
    "product with a vector": "(float[n, 4] x) => (float[n] y) <float[4] w = {1, 2, 3, 4}> { y = MatMul(x, w) }",
    "general product": "(float[n, 4] x) => (float[n, 2] y) "
    "<float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] b = {1, 2}> { y = Gemm<transB = 1>(x, w, b) }",
    "einsum": "(float[n, 3, 4] x, float[n, 5, 4] z) => (float[n, 3, 5] y) "
    '{ y = Einsum<equation = "bij,bkj->bik">(x, z) }',
    "recurrent": "(float[3, n, 2] x) => (float[1, n, 1] y) <float[1, 1, 2] w = {1, 2}, float[1, 1, 1] r = {1}> "
    "{ a, y = RNN<hidden_size = 1>(x, w, r) }",
    "quantised": f"{X} <float s = {{0.1}}, int8 z = {{0}}> "
    "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
    "attention": "(float[n, 2, 3, 4] x) => (float[n, 2, 3, 4] y) <int64[2] k = {1, 1}> { y = Attention(x, x, x) }",
}


@pytest.mark.parametrize("what", KEEPS)
def test_entries_are_independent_where_the_operator_keeps_them_apart(what: str, tmp_path: Path) -> None:
    """No operator is named, and ONNX Runtime answers chunks like the whole, extreme values included."""
    opset = 23 if what == "attention" else 22
    assert influence(KEEPS[what], opset) is None
    assert not answers_in_chunks_differ(parse(KEEPS[what], opset), tmp_path)


MIXES: dict[str, tuple[str, str]] = {
    "other values for each number": (
        "(float[n, 4] x, float[5, 4] z) => (float[n, 4] y) { y = Add(x, z) }",
        "Add '' uses other values for each number of an entry",
    ),
    "rows with columns": (
        "(float[n, 1] x, float[1, n] z) => (float[n, n] y) { y = Add(x, z) }",
        "Add '' joins entries that lie along different dimensions",
    ),
    "softmax of a column": (f"{X} {{ y = Softmax<axis = 0>(x) }}", "Softmax '' compares the entries"),
    "softmax by a negative axis": (f"{X} {{ y = Softmax<axis = -2>(x) }}", "Softmax '' compares the entries"),
    "running sum": (f"{X} <int64 a = {{0}}> {{ y = CumSum(x, a) }}", "CumSum '' sums over the entries before"),
    "top of a column": (f"{X} <int64[1] k = {{2}}> {{ y, i = TopK<axis = 0>(x, k) }}", "TopK '' ranks the entries"),
    "mean of all": (f"{X} {{ m = ReduceMean(x) y = Sub(x, m) }}", "ReduceMean '' reduces over the entries"),
    "largest entry": (
        f"{X} <int64[1] a = {{-2}}> {{ m = ReduceMax(x, a) y = Sub(x, m) }}",
        "ReduceMax '' reduces over the entries",
    ),
    "best entry": (
        f"{X} {{ i = ArgMax<axis = 0>(x) f = Cast<to = 1>(i) y = Add(x, f) }}",
        "ArgMax '' compares the entries",
    ),
    "layer norm": (
        "(float[2, n] x, float[n] w) => (float[2, n] y) { y = LayerNormalization<axis = -1>(x, w) }",
        "LayerNormalization '' uses entries in a place where they act on all entries",
    ),
    "batch norm in training": (
        f"{CUBE} <float[3] w = {{1, 2, 3}}> {{ y, m, v = BatchNormalization<training_mode = 1>(x, w, w, w, w) }}",
        "BatchNormalization '' normalises over the entries",
    ),
    "batch norm with statistics": (
        f"{CUBE} <float[3] w = {{1, 2, 3}}> {{ y, m, v = BatchNormalization(x, w, w, w, w) }}",
        "BatchNormalization '' normalises over the entries",
    ),
    "resizing along the entries": (
        f"{IMAGE} => (float[n, 2, 12, 12] y) <float[4] s = {{1.5, 1, 2, 2}}> {{ y = Resize(x, , s) }}",
        "Resize '' resizes the entries' dimension, or by scales that are not followed",
    ),
    "convolution along the entries": (
        "(float[1, 2, n] x) => (float[1, 1, n] y) <float[1, 2, 3] w = {1, 2, 3, 4, 5, 6}> "
        "{ y = Conv<pads = [1, 1]>(x, w) }",
        "Conv '' slides its kernel over the entries",
    ),
    "strides along the entries": (
        "(float[1, 2, n] x) => (float[1, 1, n] y) <float[1, 2, 1] w = {1, 2}> { y = Conv<strides = [2]>(x, w) }",
        "Conv '' slides its kernel over the entries",
    ),
    "pooling along the entries": (
        "(float[1, 2, n] x) => (float[1, 2, n] y) { y = MaxPool<kernel_shape = [3], pads = [1, 1]>(x) }",
        "MaxPool '' works over channels and pixels",
    ),
    "entries with entries": (
        "(float[n, 4] x, float[4, n] z) => (float[n, n] y) { y = MatMul(x, z) }",
        "MatMul '' multiplies every entry by every other",
    ),
    "sum by a product": (
        "(float[4, n] x, float[n, 4] z) => (float[4, n] y) { m = MatMul(x, z) y = MatMul(m, x) }",
        "MatMul '' sums over the entries",
    ),
    "a weight for each number": (
        "(float[n, 3, 4] x, float[5, 4, 3] z) => (float[n, 3, 3] y) { y = MatMul(x, z) }",
        "MatMul '' uses other values for each number of an entry",
    ),
    "sum by einsum": (
        'X_TEXT { m = Einsum<equation = "bi,bj->ij">(x, x) y = MatMul(x, m) }',
        "Einsum '' sums over the entries",
    ),
    "recurrence over the entries": (
        "(float[n, 3, 2] x) => (float[n, 1, 3, 1] y) <float[1, 1, 2] w = {1, 2}, float[1, 1, 1] r = {1}> "
        "{ y = RNN<hidden_size = 1>(x, w, r) }",
        "RNN '' goes from entry to entry",
    ),
    "dropout in training": (
        f"{X} <float r = {{0.5}}, bool t = {{1}}> {{ y = Dropout(x, r, t) }}",
        "Dropout '' may drop values at random",
    ),
    "random numbers": (f"{X} {{ r = RandomNormalLike(x) y = Add(x, r) }}", "RandomNormalLike '' draws random numbers"),
    "an operator without a rule": (
        f"{X} {{ y = MeanVarianceNormalization(x) }}",
        "MeanVarianceNormalization '' has no rule",
    ),
    "an operator of others": (f"{X} {{ y = my.domain.Relu(x) }}", "Relu '' has no rule"),
    "places among all": (
        "(float[n, 1, 4] x) => (float[n, 1, 2] y) "
        "{ v, i = MaxPool<kernel_shape=[2], strides=[2]>(x) y = Cast<to=1>(i) }",
        "MaxPool '' has a second result without a rule",
    ),
    "the number of entries": (
        f"{X} {{ s = Shape<start = 0, end = 1>(x) f = Cast<to = 1>(s) y = Div(x, f) }}",
        "Cast '' computes with the number of entries",
    ),
    "an attention over the entries": (
        "(float[1, 2, n, 4] x) => (float[1, 2, n, 4] y) { y = Attention(x, x, x) }",
        "Attention '' attends to other entries",
    ),
}


@pytest.mark.parametrize("what", MIXES)
def test_operator_that_mixes_entries_is_named(what: str) -> None:
    """The first operator that lets entries influence each other is named, and how."""
    text, expected = MIXES[what]
    opset = 23 if "attention" in what else 22
    assert (influence(text.replace("X_TEXT", X), opset) or "").startswith(expected)


def test_softmax_of_an_old_opset_has_no_rule() -> None:
    """Before opset 13 Softmax flattened all later dimensions, the entries' too."""
    assert influence(f"{X} {{ y = Softmax<axis = 1>(x) }}", 11) == "Softmax '' has another meaning before opset 13"
