"""Operators that move entries: what keeps them apart is so in ONNX Runtime too, what mixes them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.axis_graphs import answers_in_chunks_differ, influence, parse

X = "(float[n, 4] x) => (float[n, 4] y)"
HEADS = "(float[n, t, 4] x) => (float[n, t, 4] y)"

KEEPS: dict[str, str] = {
    "transposed": "(float[n, 4] x) => (float[4, n] y) { y = Transpose(x) }",
    "heads": f"{HEADS} <int64[4] h = {{0, 0, 2, 2}}, int64[3] b = {{0, 0, -1}}> "
    "{ r = Reshape(x, h) p = Transpose<perm = [0, 2, 1, 3]>(r) q = Transpose<perm = [0, 1, 3, 2]>(p) "
    "s = MatMul(p, q) w = Softmax(s) o = MatMul(w, p) m = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(m, b) }",
    "heads in the batch, by sizes of the input": f"{HEADS} <int64[1] two = {{2}}, int64[1] four = {{4}}> "
    "{ n = Shape<start = 0, end = 1>(x) t = Shape<start = 1, end = 2>(x) h = Concat<axis = 0>(n, t, two, two) "
    "r = Reshape(x, h) p = Transpose<perm = [0, 2, 1, 3]>(r) nh = Mul(n, two) f = Concat<axis = 0>(nh, t, two) "
    "g = Reshape(p, f) k = Transpose<perm = [0, 2, 1]>(g) s = MatMul(g, k) w = Softmax(s) o = MatMul(w, g) "
    "u = Concat<axis = 0>(n, two, t, two) v = Reshape(o, u) m = Transpose<perm = [0, 2, 1, 3]>(v) "
    "e = Concat<axis = 0>(n, t, four) y = Reshape(m, e) }",
    "rows of tokens and back": f"{HEADS} <int64[2] f = {{-1, 4}}, int64[1] four = {{4}}> "
    "{ s = Shape<start = 0, end = 2>(x) r = Reshape(x, f) g = Relu(r) "
    "b = Concat<axis = 0>(s, four) y = Reshape(g, b) }",
    "the second dimension merged": "(float[3, n, 2] x) => (float[3, n, 2] y) "
    "<int64[2] f = {-1, 2}, int64[3] b = {3, -1, 2}> "
    "{ r = Reshape(x, f) g = Relu(r) y = Reshape(g, b) }",
    "flattened": "(float[n, 2, 2] x) => (float[n, 4] y) { y = Flatten(x) }",
    "unsqueezed in front": "(float[n, 4] x) => (float[1, n, 4] y) <int64[1] a = {0}> { y = Unsqueeze(x, a) }",
    "unsqueezed behind": "(float[n] x) => (float[n, 1] y) <int64[1] a = {-1}> { y = Unsqueeze(x, a) }",
    "squeezed": "(float[1, n, 4] x) => (float[n, 4] y) <int64[1] a = {0}> { y = Squeeze(x, a) }",
    "expanded": "(float[n, 1, 4] x) => (float[n, 3, 4] y) <int64[3] s = {1, 3, 1}> { y = Expand(x, s) }",
    "a token for each entry": "(float[n, 4] x) => (float[n, 8] y) <float[1, 4] w = {1, 2, 3, 4}, int64[1] four = {4}> "
    "{ n = Shape<start = 0, end = 1>(x) s = Concat<axis = 0>(n, four) c = Expand(w, s) y = Concat<axis = 1>(c, x) }",
    "zeros for each entry": f"{X} <int64[1] four = {{4}}> {{ n = Shape<start = 0, end = 1>(x) "
    "s = Concat<axis = 0>(n, four) z = ConstantOfShape(s) y = Add(x, z) }",
    "sizes that are compared": f"{X} <int64[1] two = {{2}}, int64[1] four = {{4}}> "
    "{ n = Shape<start = 0, end = 1>(x) m = Max(n, n) k = Max(two, four) l = Min(four, k) "
    "s = Concat<axis = 0>(m, l) z = ConstantOfShape(s) y = Add(x, z) }",
    "tiled": "(float[n, 2] x) => (float[n, 4] y) <int64[2] r = {1, 2}> { y = Tile(x, r) }",
    "a weight tiled for each entry": "(float[n, 2] x) => (float[n, 2] y) <float[1, 2] w = {1, 2}, int64[1] one = {1}> "
    "{ n = Shape<start = 0, end = 1>(x) r = Concat<axis = 0>(n, one) t = Tile(w, r) y = Add(x, t) }",
    "parts of rows": "(float[n, 4] x) => (float[n, 4] y) { a, b = Split<axis = 1, num_outputs = 2>(x) "
    "y = Concat<axis = -1>(b, a) }",
    "a slice of rows": "(float[n, 4] x) => (float[n, 2] y) <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {-1}> "
    "{ y = Slice(x, s, e, a) }",
    "all entries": f"{X} <int64[1] s = {{0}}, int64[1] e = {{9223372036854775807}}, int64[1] a = {{0}}> "
    "{ y = Slice(x, s, e, a) }",
    "as many as there are": f"{X} <int64[1] s = {{0}}> {{ e = Shape<start = 0, end = 1>(x) y = Slice(x, s, e, s) }}",
    "a table": "(int64[n, 3] x) => (float[n, 3, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = Gather(w, x) }",
    "columns": "(float[n, 4] x) => (float[n, 2] y) <int64[2] i = {3, 0}> { y = Gather<axis = 1>(x, i) }",
    "elements of each row": "(float[n, 4] x, int64[n, 2] i) => (float[n, 2] y) { y = GatherElements<axis = 1>(x, i) }",
    "one's own row by its number": "(float[n, 4] x, int64[n, 1] i) => (float[n] y) <int64 o = {0}, int64 p = {1}, "
    "int64[1] a = {1}> { n = Shape<start = 0, end = 1>(x) q = Squeeze(n) r = Range(o, q, p) u = Unsqueeze(r, a) "
    "k = Concat<axis = -1>(u, i) y = GatherND(x, k) }",
    "rows by batch": "(float[n, 4, 2] x, int64[n, 1] i) => (float[n, 2] y) { y = GatherND<batch_dims = 1>(x, i) }",
    "rows of a table": "(int64[n, 1] i) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = GatherND(w, i) }",
    "rows that are the same for all": "(float[4, n] x) => (float[3, n] y) <int64[3, 1] i = {2, 0, 2}> "
    "{ y = GatherND(x, i) }",
    "scattered": "(float[n, 4] x, int64[n, 2] i, float[n, 2] u) => (float[n, 4] y) "
    "{ y = ScatterElements<axis = 1>(x, i, u) }",
    "scattered into columns, by the default axis": "(float[4, n] x, int64[2, n] i, float[2, n] u) => (float[4, n] y) "
    "{ y = ScatterElements(x, i, u) }",
    "a size that is chosen by its number": f"{X} <int64 i = {{0}}, int64[1] a = {{0}}, int64[1] four = {{4}}> "
    "{ s = Shape(x) g = Gather(s, i) u = Unsqueeze(g, a) c = Concat<axis = 0>(u, four) z = ConstantOfShape(c) "
    "y = Add(x, z) }",
    "padded rows": "(float[n, 4] x) => (float[n, 6] y) <int64[4] p = {0, 1, 0, 1}> { y = Pad(x, p) }",
    "one-hot": "(int64[n] x) => (float[n, 3] y) <int64[1] d = {3}, float[2] v = {0, 1}> { y = OneHot(x, d, v) }",
    "one-hot in front": "(int64[n] x) => (float[3, n] y) <int64[1] d = {3}, float[2] v = {0, 1}> "
    "{ y = OneHot<axis = 0>(x, d, v) }",
    "triangle": "(float[n, 3, 3] x) => (float[n, 3, 3] y) { y = Trilu(x) }",
    "pixels": "(float[n, 4, 2, 2] x) => (float[n, 1, 4, 4] y) { y = DepthToSpace<blocksize = 2>(x) }",
}


@pytest.mark.parametrize("what", KEEPS)
def test_entries_are_independent_where_they_are_only_moved(what: str, tmp_path: Path) -> None:
    """No operator is named, and ONNX Runtime answers chunks like the whole, extreme values included."""
    assert influence(KEEPS[what]) is None
    assert not answers_in_chunks_differ(parse(KEEPS[what]), tmp_path)


SHAPE = "n = Shape<start = 0, end = 1>(x)"
MIXES: dict[str, tuple[str, str]] = {
    "pairs of entries": (
        f"{X} <int64[3] f = {{-1, 2, 4}}, int64[2] b = {{-1, 4}}> "
        "{ r = Reshape(x, f) s = Softmax<axis = 1>(r) y = Reshape(s, b) }",
        "Reshape '' reshapes to",
    ),
    "rows in another order": (
        "(float[n, 4] x) => (float[4, n] y) <int64[2] s = {4, -1}> { y = Reshape(x, s) }",
        "Reshape '' reshapes to [4, n], in which entries lie across dimensions",
    ),
    "merged and softmax": (
        "(float[n, 3] x) => (float[n, 3] y) <int64[1] f = {-1}, int64[2] b = {-1, 3}> "
        "{ r = Reshape(x, f) s = Softmax(r) y = Reshape(s, b) }",
        "Softmax '' compares the entries",
    ),
    "a part of the entries": (
        f"{X} <int64[1] s = {{1}}, int64[1] e = {{9223372036854775807}}, int64[1] a = {{0}}> "
        "{ p = Slice(x, s, e, a) m = ReduceSum(p) y = Add(x, m) }",
        "Slice '' takes a part of the entries, or turns them round",
    ),
    "at most eight": (
        f"{X} <int64[1] s = {{0}}, int64[1] e = {{8}}> {{ y = Slice(x, s, e, s) }}",
        "Slice '' takes a part of the entries, or turns them round",
    ),
    "turned round": (
        f"{X} <int64[1] s = {{-1}}, int64[1] e = {{-9223372036854775807}}, int64[1] a = {{0}}> "
        "{ y = Slice(x, s, e, a, s) }",
        "Slice '' takes a part of the entries, or turns them round",
    ),
    "a table by number": (
        "(float[n, 2] x) => (float[n, 2] y) <float[9, 2] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, int64[1] s = {0}> "
        f"{{ {SHAPE} p = Slice(w, s, n, s) y = Add(x, p) }}",
        "Slice '' uses the same values for every entry in a place where they may be for one entry each",
    ),
    "numbers of the entries": (
        f"{X} <int64 o = {{0}}, int64 p = {{1}}, int64[1] a = {{1}}> {{ {SHAPE} q = Squeeze(n) r = Range(o, q, p) "
        "u = Unsqueeze(r, a) f = Cast<to = 1>(u) y = Add(x, f) }",
        "Cast '' computes with the numbers of the entries",
    ),
    "the entry behind": (
        "(float[n, 4] x, int64[n, 1] i) => (float[n] y) <int64 o = {1}, int64 p = {1}, int64[1] a = {1}> "
        f"{{ {SHAPE} q = Squeeze(n) e = Add(q, p) r = Range(o, e, p) u = Unsqueeze(r, a) k = Concat<axis = -1>(u, i) "
        "y = GatherND(x, k) }",
        "Range '' counts as far as the number of entries says",
    ),
    "rows that the values choose": (
        "(float[n, 4] x, int64[n] i) => (float[n, 4] y) { y = Gather(x, i) }",
        "Gather '' chooses for each entry from what may be other entries",
    ),
    "entries by the same indices": (
        "(float[n, 4] x) => (float[n, 4] y) <int64[1, 1] i = {0}> { f = GatherND(x, i) y = Add(x, f) }",
        "GatherND '' uses the same values for every entry",
    ),
    "the first row": (
        f"{X} <int64[1] i = {{0}}> {{ f = Gather(x, i) y = Add(x, f) }}",
        "Gather '' chooses among the entries",
    ),
    "a row behind the entries": (
        f"{X} <float[1, 4] w = {{1, 2, 3, 4}}> {{ c = Concat<axis = 0>(x, w) m = ReduceMax(c) y = Add(x, m) }}",
        "Concat '' ",
    ),
    "entries with entries": (
        "(float[n, 4] x) => (float[n, 4] y) { y = Concat<axis = 0>(x, x) }",
        "Concat '' joins other values to the entries, along their dimension",
    ),
    "padded entries": (
        f"{X} <int64[4] p = {{1, 0, 0, 0}}> {{ y = Pad(x, p) }}",
        "Pad '' pads the entries' dimension",
    ),
    "repeated entries": (
        f"{X} <int64[2] r = {{2, 1}}> {{ y = Tile(x, r) }}",
        "Tile '' repeats the entries",
    ),
    "entries repeated as an input says": (
        "(float[n, 2] x, int64[2] r) => (float[n, 4] y) { y = Tile(x, r) }",
        "Tile '' repeats as often as can't be followed",
    ),
    "halves of the entries": (
        "(float[n, 4] x) => (float[n, 4] y) { a, b = Split<axis = 0, num_outputs = 2>(x) y = Add(a, b) }",
        "Split '' splits the entries' dimension",
    ),
    "entries in a triangle": (
        "(float[n, 4] x) => (float[n, 4] y) { y = Trilu(x) }",
        "Trilu '' masks by the numbers of the entries",
    ),
    "one entry alone": (
        "(float[n, 1] x) => (float[n, 1] y) { s = Squeeze(x) m = ReduceSum(s) y = Add(x, m) }",
        "Squeeze '' removes every dimension of size 1",
    ),
    "as often as there are entries": (
        f"(float[n, 1] x) => (float[n, n] y) <int64[1] one = {{1}}> {{ {SHAPE} "
        "s = Concat<axis = 0>(one, n) y = Expand(x, s) }",
        "Expand '' repeats as often as there are entries, along another dimension",
    ),
    "entries that only exist": (
        f"{X} {{ z = NonZero(x) c = Shape<start = 1>(z) f = Cast<to = 1>(c) y = Add(x, f) }}",
        "Cast '' computes with the number of entries",
    ),
}


@pytest.mark.parametrize("what", MIXES)
def test_move_that_mixes_entries_is_named(what: str) -> None:
    """The first operator that lets entries influence each other is named, and how."""
    text, expected = MIXES[what]
    assert (influence(text) or "").startswith(expected)
