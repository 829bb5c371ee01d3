"""Whole graphs: branches, loops, words for people, and that what is called independent is so in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.axis_graphs import answers_in_chunks_differ, influence, parse, signature_of
from torch2engine.onnx_graph.axis_flow.analysis import find_influences

X = "(float[n, 4] x) => (float[n, 4] y)"


def test_axes_are_judged_one_by_one() -> None:
    """Attention over tokens keeps the batch apart, and mixes the tokens."""
    text = (
        "(float[n, t, 4] x) => (float[n, t, 4] y) { k = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, k) w = Softmax(s) "
    )
    text += "y = MatMul(w, x) }"
    assert influence(text) is None
    assert influence(text, axis="t") == "MatMul '' multiplies every entry by every other"


KEEPS: dict[str, str] = {
    "a branch by a constant": f"{X} <bool c = {{1}}> "
    "{ y = If(c)<then_branch = a () => (float[n, 4] p) { p = Relu(x) }, "
    "else_branch = b () => (float[n, 4] q) { q = Neg(x) }> }",
    "a loop of constant length": f"{X} <int64 m = {{3}}, bool c = {{1}}> "
    "{ y = Loop(m, c, x)<body = l (int64 i, bool k, float[n, 4] s) => (bool o, float[n, 4] e) "
    "{ o = Identity(k) e = Add(s, x) }> }",
    "a scan along another dimension": "(float[3, n] x, float[n] z) => (float[n] y) "
    "{ y, v = Scan(z, x)<num_scan_inputs = 1, body = l (float[n] s, float[n] r) => (float[n] e, float[n] o) "
    "{ e = Add(s, r) o = Identity(r) }> }",
}


@pytest.mark.parametrize("what", KEEPS)
def test_branches_and_loops_that_keep_entries_apart_are_independent(what: str, tmp_path: Path) -> None:
    """The graphs inside nodes are walked like the one around them."""
    assert influence(KEEPS[what]) is None
    assert not answers_in_chunks_differ(parse(KEEPS[what]), tmp_path)


MIXES: dict[str, tuple[str, str]] = {
    "a branch by the entries": (
        f"{X} <float z = {{0}}> {{ m = ReduceMax<keepdims = 0>(x) c = Greater(m, z) "
        "y = If(c)<then_branch = a () => (float[n, 4] p) { p = Relu(x) }, "
        "else_branch = b () => (float[n, 4] q) { q = Neg(x) }> }",
        "ReduceMax '' reduces over the entries",
    ),
    "a mix in one branch": (
        f"{X} <bool c = {{1}}> {{ y = If(c)<then_branch = a () => (float[n, 4] p) {{ p = Relu(x) }}, "
        "else_branch = b () => (float[n, 4] q) { q = Softmax<axis = 0>(x) }> }",
        "Softmax '' compares the entries",
    ),
    "a mix in the second round": (
        "(float[n, 4] x, float[4] z) => (float[n, 4] y) <int64 m = {3}, bool c = {1}> "
        "{ r, s = Loop(m, c, z, x)<body = l (int64 i, bool k, float[4] a, float[n, 4] b) => "
        "(bool o, float[4] d, float[n, 4] e) { o = Identity(k) d = ReduceSum<keepdims = 0>(b) e = Add(b, a) }> "
        "y = Identity(s) }",
        "ReduceSum '' reduces over the entries",
    ),
    "as many rounds as entries": (
        f"{X} <bool c = {{1}}> {{ n = Shape<start = 0, end = 1>(x) m = Squeeze(n) "
        "y = Loop(m, c, x)<body = l (int64 i, bool k, float[n, 4] s) => (bool o, float[n, 4] e) "
        "{ o = Identity(k) e = Add(s, x) }> }",
        "Loop '' computes with the number of entries",
    ),
    "a scan over the entries": (
        "(float[n, 4] x, float[4] z) => (float[n, 4] y) "
        "{ v, y = Scan(z, x)<num_scan_inputs = 1, body = l (float[4] s, float[4] r) => (float[4] e, float[4] o) "
        "{ e = Add(s, r) o = Identity(e) }> }",
        "Scan '' goes from entry to entry",
    ),
}


@pytest.mark.parametrize("what", MIXES)
def test_branches_and_loops_that_mix_entries_are_named(what: str) -> None:
    """The node inside is named, or the one around it if that is what mixes."""
    text, expected = MIXES[what]
    assert influence(text) == expected


def test_outputs_without_an_entry_each_are_named() -> None:
    """What is the same for all entries can't be put together from chunks."""
    text = "(float[n, 4] x, float[2] z) => (float[n, 4] y, float[2] w) { y = Relu(x) w = Relu(z) }"
    assert influence(text) == "output 'w' does not have an entry for each entry of the inputs"
    merged = "(float[n, 3] x) => (float[m] y) <int64[1] f = {-1}> { y = Reshape(x, f) }"
    assert influence(merged) == "output 'y' has the entries in one dimension with others"


def test_constants_in_another_file_are_not_read(tmp_path: Path) -> None:
    """A model above 2 GiB keeps its tensors beside it, and what nobody has read is taken for unknown."""
    model = parse("(float[n, 2, 2] x) => (float[n, 4] y) <int64[2] s = {-1, 4}> { y = Reshape(x, s) }")
    shape = onnx.numpy_helper.from_array(np.array([-1, 4]), "s")  # bytes, which alone go into another file
    model.graph.initializer[0].CopyFrom(shape)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    found = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert found.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    influences = find_influences(found, signature_of(found))
    assert influences == {"n": "Reshape '' reshapes to sizes that can't be followed"}


class Centred(nn.Module):
    """A convolution and a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        self.centre = Centre()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.centre(self.layers(x))


class Centre(nn.Module):
    """Subtracts the mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def test_exported_model_names_module_and_line_of_what_mixes() -> None:
    """An artifact knows its influences, in the user's words; without the mean there are none."""
    model = Centred().eval()
    sample, axes = torch.rand(2, 3, 6, 6), {"x": {0: t2e.Axis("batch", 1, 2, 4)}}
    line = Centre.forward.__code__.co_firstlineno + 1
    mixed = t2e.export(model, sample, axes)
    expected = f"ReduceMean (module 'centre', at test_analysis.py:{line}) reduces over the entries"
    assert mixed.influences == {"batch": expected}
    assert type(mixed).load(mixed.save(mixed.folder / "saved")).influences == {"batch": expected}
    assert t2e.export(model.layers, sample, {"input": axes["x"]}).influences == {"batch": None}


STEPS: dict[str, list[tuple[str, str]]] = {
    "cube": [  # (n, 3, 4)
        ("cube", "{new} = Relu({old})"),
        ("cube", "{new} = Add({old}, {cube})"),
        ("cube", "{new} = Softmax<axis = {axis}>({old})"),
        (
            "cube",
            "{new}k = Transpose<perm = [0, 2, 1]>({cube}) {new}s = MatMul({old}, {new}k) {new} = MatMul({new}s, {old})",
        ),
        ("cube", "{new}m = ReduceMax<axes = [{axis}]>({old}) {new} = Sub({old}, {new}m)"),
        ("cube", "{new} = Mul({old}, row)"),
        ("cube", "{new} = CumSum({old}, where{axis})"),
        ("turned", "{new} = Transpose<perm = [1, 0, 2]>({old})"),
        ("rows", "{new} = Reshape({old}, rows)"),
    ],
    "turned": [  # (3, n, 4)
        ("turned", "{new} = Sigmoid({old})"),
        ("turned", "{new} = Softmax<axis = {axis}>({old})"),
        ("turned", "{new} = MatMul({old}, square)"),
        ("turned", "{new}g = Gather<axis = {axis}>({old}, first) {new} = Add({old}, {new}g)"),
        ("cube", "{new} = Transpose<perm = [1, 0, 2]>({old})"),
        ("cube", "{new} = Reshape({old}, cubes)"),  # which is no transposition
    ],
    "rows": [  # (3 n, 4)
        ("rows", "{new} = Tanh({old})"),
        ("rows", "{new} = MatMul({old}, square)"),
        ("rows", "{new} = LogSoftmax<axis = {flat}>({old})"),
        ("cube", "{new} = Reshape({old}, cubes)"),
    ],
}
WEIGHTS = (
    "<int64[2] rows = {-1, 4}, int64[3] cubes = {-1, 3, 4}, int64[1] first = {0}, int64 where0 = {0}, "
    "int64 where1 = {1}, int64 where2 = {2}, float[4] row = {1, -2, 0, 3}, "
    "float[4, 4] square = {1, 2, 3, 4, 0, 1, 0, 1, 5, 0, -1, 0, 1, 0, 0, 2}>"
)


def random_graph(seed: int) -> str:
    """A graph of up to twelve random steps."""
    generator = np.random.default_rng(seed)
    kind, old, cubes, lines = "cube", "x", ["x"], list[str]()
    while len(lines) < 5 or kind != "cube":
        steps = STEPS[kind]
        kind, step = steps[generator.integers(len(steps))]
        new = f"t{len(lines)}"
        axis, flat = generator.choice(3, p=(0.1, 0.3, 0.6)), generator.choice(2, p=(0.1, 0.9))
        lines.append(step.format(new=new, old=old, cube=generator.choice(cubes), axis=axis, flat=flat))
        old = new
        if kind == "cube":
            cubes.append(new)
    body = " ".join(lines)
    return f"(float[n, 3, 4] x) => (float[n, 3, 4] y) {WEIGHTS} {{ {body} y = Identity({old}) }}"


def test_whatever_is_called_independent_is_answered_alike_in_chunks(tmp_path: Path) -> None:
    """Of many random graphs those without an influence answer chunks like the whole, extreme values included."""
    graphs = [random_graph(seed) for seed in range(120)]
    independent = [text for text in graphs if influence(text, opset=17) is None]
    assert 20 < len(independent) < 100
    for text in independent:
        assert not answers_in_chunks_differ(parse(text, 17), tmp_path), text
