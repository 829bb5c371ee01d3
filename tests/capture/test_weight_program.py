"""Weight programs: weights of an exported graph, worked out again from a module whose parameters have changed.

Enters: models with every trap that a refit can step into. Leaves: proof that the program gives what an export of the
changed module would hold, that it covers every weight, and that a changed structure is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch2engine as t2e
from tests.support.weight_models import BATCH, MODELS, Shared, Strange, batch_axes, refittable_export, tiny
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.capture.process_state import exact_arithmetic
from torch2engine.capture.refit_operators import apply_to_many
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.weight_program import WEIGHT_OPERATORS, WeightProgram, WeightStep
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.onnx_graph.ort_session import OrtSession


def exported(model: nn.Module, x: torch.Tensor) -> OnnxArtifact:
    with undisturbed(model):
        return export_onnx(capture_call(model, x, batch_axes(model)), refittable=True)


def program_of(artifact: OnnxArtifact) -> WeightProgram:
    return WeightProgram.from_json(artifact.read(WEIGHTS))


@torch.no_grad()
def change(model: nn.Module) -> None:
    """Another value for every parameter and buffer; variances stay positive."""
    for tensor in {id(part): part for part in (*model.parameters(), *model.buffers())}.values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.2 * torch.rand_like(tensor))


def refitted(artifact: OnnxArtifact, model: nn.Module, folder: Path) -> Path:
    """The graph with the weights that the program gives for the module."""
    program = program_of(artifact)
    graph = onnx.load(artifact.onnx_path)
    new = program.run(program.tensors(model))
    for tensor in graph.graph.initializer:
        if tensor.name in new:
            value = new[tensor.name]
            assert (list(value.shape), value.is_contiguous()) == (list(tensor.dims), True)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.numpy(), tensor.name))
    path = folder / "refitted.onnx"
    onnx.save(graph, path)
    return path


def distance(path: Path, model: nn.Module, x: torch.Tensor) -> float:
    """The largest relative error of any output."""
    answer = model(x)
    wanted = [part.detach() for part in ([answer] if isinstance(answer, torch.Tensor) else answer)]
    names = [value.name for value in onnx.load(path).graph.output]
    (given,) = (value.name for value in onnx.load(path).graph.input)
    found = OrtSession(path, as_it_is=True)({given: x.numpy()})
    return max(
        float(np.abs(found[name] - part.numpy()).max() / part.abs().max())
        for name, part in zip(names, wanted, strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_program_gives_the_weights_of_the_changed_module(name: str, tmp_path: Path) -> None:
    """Right before and after, while the old weights are wrong by far; and every float weight is covered."""
    export = refittable_export(name)
    model, x, artifact = export.model, export.sample, export.artifact
    assert distance(artifact.onnx_path, model, x) < 1e-5
    torch.manual_seed(0)
    change(model)
    assert distance(artifact.onnx_path, model, x) > 1e-3
    assert distance(refitted(artifact, model, tmp_path), model, x) < 3e-5
    program = program_of(artifact)
    # Constants go to where the parameters are; a device without values shows it on a machine without a GPU.
    there = {path: tensor.to("meta") for path, tensor in program.tensors(model).items()}
    assert {tensor.device.type for tensor in program.run(there).values()} == {"meta"}
    floats = {tensor.name for tensor in onnx.load(artifact.onnx_path).graph.initializer if tensor.data_type == 1}
    assert floats >= program.weights.keys()
    # What is fixed are the numbers in the code, never a parameter's.
    assert all(tensor.numel() <= 16 for tensor in _fixed(artifact, program))


def _fixed(artifact: OnnxArtifact, program: WeightProgram) -> list[torch.Tensor]:
    tensors = {tensor.name: tensor for tensor in onnx.load(artifact.onnx_path).graph.initializer}
    assert tensors.keys() == {*program.weights, *program.fixed}
    return [torch.tensor(onnx.numpy_helper.to_array(tensors[name])) for name in program.fixed]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_stay_themselves(dtype: torch.dtype) -> None:
    """Folding happens in float32 at least and is rounded once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)).eval().to(dtype)
    program = program_of(exported(model, torch.randn(8, 2, 4, dtype=dtype)))
    change(model)
    found = program.run(program.tensors(model))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    conv, norm = model[0], model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = next(value for value in found.values() if value.ndim == 3).double()
    wanted = (conv.weight.double() * scale[:, None, None]).detach()
    assert float((weight - wanted).norm() / wanted.norm()) < torch.finfo(dtype).eps


def test_norm_in_another_dtype_is_not_folded(tmp_path: Path) -> None:
    """A float32 norm behind a half convolution is rounded where the model rounds."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 1).half(), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x).float())

    program = program_of(exported(Mixed().eval(), torch.randn(8, 2, 4, 4).half()))
    # The norm is a product and a sum of its own, in float32.
    assert {program.weights["conv.weight"], program.weights["conv.bias"]} == {"conv.weight", "conv.bias"}
    assert program.sources["conv.weight"][1] == torch.float16


def test_values_of_parameters_decide_nothing_about_the_graph() -> None:
    """Zeros, ones and equal tensors give the graph that any others give."""
    export = refittable_export("folded")
    change(export.model)
    artifacts = [export.artifact, exported(export.model, export.sample)]
    graphs = [onnx.load(artifact.onnx_path).graph for artifact in artifacts]
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.data_type == 1:
                tensor.ClearField("raw_data")
    assert graphs[0] == graphs[1]


def test_program_reads_the_live_tensors() -> None:
    """Nothing is copied that need not be: a weight that is a parameter is that parameter's memory."""
    model = nn.Linear(3, 2).eval()
    program = program_of(exported(model, torch.randn(8, 3)))
    found = program.run(program.tensors(model))
    assert model.bias.data_ptr() in {tensor.data_ptr() for tensor in found.values()}
    assert not any(tensor.requires_grad for tensor in found.values())


# Structure


def structure(name: str) -> tuple[nn.Module, WeightProgram]:
    export = refittable_export(name)
    return export.model, program_of(export.artifact)


def test_missing_parameter_is_refused() -> None:
    """By its path."""
    model, program = structure("resnet")
    del model.head.bias
    model.head.bias = None
    with pytest.raises(t2e.RefitError) as caught:
        program.tensors(model)
    assert str(caught.value) == (
        "'head.bias': got no such parameter or buffer; expected the structure that was deployed; "
        "pass the module inside, if this one wraps it, or deploy the model again"
    )


def test_other_shape_or_dtype_is_refused() -> None:
    """By its path, with both."""
    model, program = structure("resnet")
    model.head = nn.Linear(48, 11)
    with pytest.raises(t2e.RefitError) as caught:
        program.tensors(model)
    assert "torch.float32 [11" in str(caught.value)
    model.head = nn.Linear(48, 10).half()
    with pytest.raises(t2e.RefitError, match=r"got torch.float16 \[10"):
        program.tensors(model)


def test_untied_weights_are_refused() -> None:
    """The graph has one where the model would need two."""
    model, program = structure("tied")
    assert program.shared == (("words.weight", "head.weight"),)
    model.head.weight = nn.Parameter(torch.randn(12, 8))
    with pytest.raises(t2e.RefitError, match=r"'words\.weight' and 'head\.weight': got different tensors"):
        program.tensors(model)


def test_unused_parameters_may_change_as_they_like() -> None:
    """They are no part of the graph."""
    model, program = structure("folded")
    model.unused = None
    assert "unused" not in program.sources
    program.tensors(model)


def test_what_a_program_can_not_do_stays_in_the_graph(tmp_path: Path) -> None:
    """The parameters that it starts from are refitted; neither graph nor program carry what is spread out."""
    torch.manual_seed(0)
    model, x = Strange().eval(), torch.randn(8, 4)
    artifact = exported(model, x)
    change(model)
    model.counts += 5
    assert distance(refitted(artifact, model, tmp_path), model, x) < 3e-5
    assert artifact.onnx_path.stat().st_size < 2 * 160_000 + 20_000
    assert len(artifact.read(WEIGHTS)) < 5_000


def test_shared_norms_and_convolutions(tmp_path: Path) -> None:
    """Each place gets its own weights; a norm that can't be folded is a product and a sum."""
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(8, 2, 4, 4)
    artifact = exported(model, x)
    change(model)
    assert distance(refitted(artifact, model, tmp_path), model, x) < 1e-5
    nodes = [node.op_type for node in onnx.load(artifact.onnx_path).graph.node]
    assert [nodes.count(op) for op in ("BatchNormalization", "Sub", "Mul")] == [0, 1, 1]


@pytest.mark.parametrize(
    ("rank", "options", "dtype"),
    [
        *((rank, {}, torch.float32) for rank in (2, 3, 4, 5)),
        *((4, {}, dtype) for dtype in (torch.float16, torch.bfloat16)),
        *((3, options, torch.float16) for options in ({"affine": False}, {"momentum": None}, {"eps": 0.5})),
    ],
    ids=str,
)
def test_norms_alone_keep_their_digits(rank: int, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """With a mean sixty times as large as the deviation, of every rank; before and after a change."""
    torch.manual_seed(0)
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
    model = nn.Sequential(kind(3, **options), nn.ReLU()).eval()
    model[0].running_mean.fill_(300)
    model[0].running_var.fill_(25)
    x = (torch.randn(8, 3, *[2] * (rank - 2)) * 5 + 300).to(dtype)
    artifact = exported(model.to(dtype), x)
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(artifact.onnx_path).graph.node]
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for _ in range(2):
        program = program_of(artifact)
        new = program.run(program.tensors(model))
        found = ((x - new[_named(new, "sub")]) * new[_named(new, "mul")] + new[_named(new, "add")]).relu()
        with torch.no_grad():
            assert (found.float() - model(x).float()).norm() < bound * model(x).float().norm()
            model[0].running_mean.mul_(1.01)
            model[0].running_var.mul_(2)


def _named(names: Any, end: str) -> str:
    return next(name for name in names if name.endswith(f"/{end}"))


def test_wide_norms_are_spread() -> None:
    """More channels than a small constant has elements."""
    model = nn.Sequential(nn.BatchNorm1d(20_000), nn.ReLU()).eval()
    program = program_of(exported(model, torch.randn(8, 20_000)))
    assert len(program.weights) == 3


def test_constants_of_half_models_are_read(tmp_path: Path) -> None:
    """bfloat16 has no numpy type."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight * 2.5

    model = Scaled().eval().bfloat16()
    program = program_of(exported(model, torch.randn(8, 4).bfloat16()))
    (found,) = program.run(program.tensors(model)).values()
    assert torch.equal(found, model.weight.detach() * 2.5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_language_models(name: str, tmp_path: Path) -> None:
    """Embeddings, positions from buffers, tied heads."""
    torch.manual_seed(0)
    model, inputs = tiny(name)
    model.eval()
    with undisturbed(model):
        artifact = export_onnx(capture_call(model, inputs, dict.fromkeys(inputs, BATCH)), refittable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        wanted = model(**inputs)[0].numpy()
    arrays = {key: value.numpy() for key, value in inputs.items()}

    def error(path: Path) -> float:
        found = OrtSession(path, as_it_is=True)(arrays)
        answer = next(value for value in found.values() if value.shape == wanted.shape)
        return float(np.abs(answer - wanted).max() / np.abs(wanted).max())

    assert error(artifact.onnx_path) > 1e-2
    assert error(refitted(artifact, model, tmp_path)) < 1e-5


# The file


def test_program_survives_its_file() -> None:
    """Steps, constants of all dtypes, attributes."""
    constants = {
        "%0": torch.tensor([1, -2], dtype=torch.int64),
        "%1": torch.tensor(0.1, dtype=torch.bfloat16),
        "%2": torch.empty(0),
        "%3": torch.tensor([True, False]),
    }
    steps = (
        WeightStep("Transpose", ("a",), "%4", {"perm": (1, 0)}),
        WeightStep("Cast", ("%4",), "%5", {"to": torch.float16}),
        WeightStep("FoldedBias", ("", "a", "b", "c", "d"), "%6", {"epsilon": 1e-5}),
    )
    program = WeightProgram(
        {"a": ((2, 3), torch.float32)}, (("a", "b"),), constants, steps, {"w": "%5", "v": "a"}, ("k",)
    )
    found = WeightProgram.from_json(program.to_json())
    assert found.to_json() == program.to_json()
    assert (found.sources, found.shared, found.steps) == (program.sources, program.shared, program.steps)
    assert all(torch.equal(found.constants[name], constants[name]) for name in constants)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "got version 2; expected 1, which this torch2engine reads; deploy the model again"),
        (
            {"steps": [["Exec", [], "x", {}]]},
            (
                "got bytes that can't be read (['Exec'] are no operators of it); expected those that were "
                "saved; deploy again"
            ),
        ),
        (
            {"sources": {"a": [[1], "nn"]}},
            ("got bytes that can't be read ('nn' is no dtype); expected those that were saved; deploy again"),
        ),
        (
            {"constants": {"%0": {"shape": [2], "dtype": "int64", "data": ""}}},
            (
                "got bytes that can't be read (shape '[2]' is invalid for input of size 0); expected "
                "those that were saved; deploy again"
            ),
        ),
        ({"weights": ...}, "got bytes that can't be read ('weights'); expected those that were saved; deploy again"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], text: str) -> None:
    """In words."""
    data = {**json.loads(WeightProgram({}, (), {}, (), {}, ()).to_json()), **change}
    data = {name: value for name, value in data.items() if value is not ...}
    with pytest.raises(t2e.ArtifactError) as caught:
        WeightProgram.from_json(json.dumps(data).encode())
    assert str(caught.value) == f"weight program: {text}"


# Operators

A, B = np.random.default_rng(0).random((2, 3, 4), np.float32) + 0.5, np.float32([0.5, 1, 2, 3])
SIZES: dict[str, list[int]] = {"axes": [0, 2], "one": [1]}
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((op, [A], {}) for op in ("Abs", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus")),
    *((op, [A], {}) for op in ("Sqrt", "Tanh", "Transpose")),
    *((op, [A, B], {}) for op in ("Add", "Sub", "Mul", "Div", "Pow")),
    ("Cast", [A], {"to": onnx.TensorProto.FLOAT16}),
    ("Concat", [A, A], {"axis": -2}),
    ("Expand", [B, [2, 3, 1]], {}),
    ("Gather", [A, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Gather", [A, np.array(1)], {}),
    *((op, [A], {}) for op in ("Cos", "Sin")),
    ("MatMul", [A, A.transpose(0, 2, 1).copy()], {}),
    *((op, [A, [0, -1]], {"keepdims": keep}) for op in ("ReduceL2", "ReduceMean", "ReduceSum") for keep in (0, 1)),
    ("ReduceSum", [A], {}),
    ("Reshape", [A, [0, -1, 2]], {}),
    ("Slice", [A, [1, -1], [9, -99], [1, 2], [1, -2]], {}),
    ("Slice", [A, [1], [2]], {}),
    ("Slice", [A, [0], [2**63 - 1], [-1], [2]], {}),
    ("Squeeze", [A[:1], [0]], {}),
    ("Squeeze", [A[:1, :, :1]], {}),
    ("Transpose", [A], {"perm": [1, 2, 0]}),
    ("Unsqueeze", [A, [-1, 1]], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_operators_are_onnx_runtimes(op: str, inputs: list[Any], attributes: dict[str, Any], tmp_path: Path) -> None:
    """Each operator of programs answers like ONNX Runtime's of that name."""
    arrays = [np.array(x, dtype=np.int64) if isinstance(x, list) else x for x in inputs]
    names = [f"i{index}" for index in range(len(arrays))]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    kind = onnx.TensorProto.FLOAT16 if op == "Cast" else onnx.TensorProto.FLOAT
    first = onnx.helper.make_tensor_value_info(names[0], onnx.TensorProto.FLOAT, arrays[0].shape)
    rest = [onnx.numpy_helper.from_array(array, name) for array, name in zip(arrays[1:], names[1:], strict=True)]
    out = onnx.helper.make_tensor_value_info("y", kind, None)
    graph = onnx.helper.make_graph([node], "g", [first], [out], rest)
    path = tmp_path / "op.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10), path)
    wanted = OrtSession(path, as_it_is=True)({names[0]: arrays[0]})["y"]
    plain = {key: torch.float16 if key == "to" else value for key, value in attributes.items()}
    found = WEIGHT_OPERATORS[op]([torch.tensor(array) for array in arrays], plain)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-6)


def test_reduction_that_does_nothing_is_refused() -> None:
    """Without axes ONNX reduces over all of them, or over none if it is told so, which no export writes."""
    x = torch.arange(6.0).reshape(2, 3)
    found = WEIGHT_OPERATORS["ReduceSum"]([x, torch.tensor([1])], {"noop_with_empty_axes": 1})
    assert torch.equal(found, x.sum(1, keepdim=True))
    with pytest.raises(ValueError, match="a reduction that does nothing"):
        WEIGHT_OPERATORS["ReduceSum"]([x], {"noop_with_empty_axes": 1})


def test_every_operator_is_tried() -> None:
    """The table above has them all; the folding of BatchNorm is tried on models."""
    assert {op for op, _, _ in CASES} | {
        "FoldedWeight",
        "FoldedBias",
        "NormScale",
        "CastHalf",
    } == WEIGHT_OPERATORS.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_norms_that_are_folded_together_are_what_they_are_alone(dtype: torch.dtype) -> None:
    """To the last bit, of any size and with or without a bias; and each begins where TensorRT may want it to."""
    torch.manual_seed(0)
    sizes = [3, 64, 1, 128, 100, 256, 1 << 20, 7]
    rows = [[torch.rand(size, dtype=dtype) + 0.5 for _ in range(4)] for size in sizes]
    biases = [torch.rand(size, dtype=dtype) if size % 2 == 0 else None for size in sizes]
    weights = [torch.rand(size, 2, 1, dtype=dtype) for size in sizes]
    halves = [torch.rand(3, size).T - 0.5 for size in sizes]
    for op, inputs, attributes in (
        ("FoldedBias", [[bias, *row] for bias, row in zip(biases, rows, strict=True)], {"epsilon": 1e-5}),
        ("FoldedWeight", [[w, *row[:2]] for w, row in zip(weights, rows, strict=True)], {"epsilon": 1e-3, "axis": 0}),
        ("CastHalf", [[half] for half in halves], {}),
        ("CastHalf", [[torch.tensor(1e-9)], [torch.ones(0)], [torch.ones(2, 0)]], {}),
    ):
        together = apply_to_many(op, cast("Any", inputs), attributes)
        for found, x in zip(together, inputs, strict=True):
            right = WEIGHT_OPERATORS[op](cast("Any", x), attributes)
            assert (found.dtype, found.shape) == (right.dtype, right.shape)
            assert torch.equal(found, right)
            assert found.storage_offset() * found.element_size() % 256 == 0


def test_many_small_weights_take_few_operations() -> None:
    """A launch takes longer than the work on a small weight."""
    layers = [layer for _ in range(20) for layer in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())]
    model = nn.Sequential(*layers).eval()
    program = program_of(exported(model, torch.randn(8, 4, 4, 4)))
    counted = Counted()
    with counted:
        program.run(program.tensors(model))
    assert len(program.steps) >= 40  # a weight and a bias of each
    # Each weight takes its own product, and a cast and views of it; the rest is done for all.
    assert counted.calls < 10 * 20


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.__name__.partition(".")[0] not in {"view", "slice", "split", "split_with_sizes", "detach"}
        return func(*args, **(kwargs or {}))


MANY = np.random.default_rng(1).random((64, 256), np.float32) + np.float32(0.5)
ROW = np.random.default_rng(2).random(256, np.float32) + np.float32(0.5)
EXACT: list[tuple[str, list[Any], dict[str, Any], Callable[..., Any]]] = [
    *((op, [MANY], {}, getattr(np, op.lower())) for op in ("Cos", "Exp", "Log", "Reciprocal", "Sin", "Sqrt", "Tanh")),
    *(("Pow", [MANY, exponent], {}, np.power) for exponent in (ROW, np.float32(2.5))),
    ("Div", [MANY, ROW], {}, np.divide),
    ("Sigmoid", [MANY], {}, lambda x: 1 / (1 + np.exp(-x))),
    ("Softplus", [MANY], {}, lambda x: np.log1p(np.exp(x))),
    ("MatMul", [MANY, MANY.T.copy()], {}, np.matmul),
    ("ReduceL2", [MANY, np.array([1])], {}, lambda x, _: np.sqrt(np.square(x).sum(1, keepdims=True))),
    ("ReduceMean", [MANY, np.array([1])], {}, lambda x, _: x.mean(1, keepdims=True)),
    ("ReduceSum", [MANY, np.array([1])], {}, lambda x, _: x.sum(1, keepdims=True)),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "truth"), EXACT)
def test_operators_are_rounded_once(op: str, inputs: list[Any], attributes: Any, truth: Callable[..., Any]) -> None:
    """To the last bit what every device gives that works it out in float64: a half engine amplifies a wrong one."""
    with exact_arithmetic():
        found = WEIGHT_OPERATORS[op]([torch.tensor(array) for array in inputs], attributes)
    wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in inputs]
    np.testing.assert_array_equal(found.numpy(), truth(*wide).astype(np.float32))


def test_folded_norms_are_rounded_as_ieee_demands() -> None:
    """A square root that is right to the last bit, as a GPU's is and a CPU's vectors are not always."""
    weight, mean, bias = MANY.T.copy(), ROW[::-1].copy(), ROW[::-1].copy() / 3
    gamma, variance, beta = ROW, ROW * ROW[::-1], ROW - 1
    root = np.sqrt(variance.astype(np.float64) + 1e-5)
    scale = (gamma / root).astype(np.float32)
    parts = [torch.tensor(array) for array in (weight, gamma, variance, bias, beta, mean)]
    with exact_arithmetic():
        folded = WEIGHT_OPERATORS["FoldedWeight"](parts[:3], {"epsilon": 1e-5, "axis": 0})
        added = WEIGHT_OPERATORS["FoldedBias"]([parts[3], *parts[1:2], *parts[4:], parts[2]], {"epsilon": 1e-5})
        alone = WEIGHT_OPERATORS["NormScale"](parts[1:3], {"epsilon": 1e-5})
    np.testing.assert_array_equal(folded.numpy(), weight * scale[:, None])
    np.testing.assert_array_equal(added.numpy(), beta - (mean - bias) * scale)
    np.testing.assert_array_equal(alone.numpy(), scale)


def test_half_is_what_autocast_writes() -> None:
    """Rounded to even, but what would become zero becomes the least positive number."""
    least, next_to = 2.0**-24, 2.0**-24 - 2.0**-48
    x = torch.tensor([0.0, least / 4, -least / 4, 0.9 * least, -0.9 * least, -least, 1.1 * least, 1 + 2**-11, 1e6])
    x = torch.cat([x, torch.tensor([least, next_to, -next_to, 1e-45, -1e-45, -0.0, -1e6])])
    expected = torch.tensor([0.0, least, least, least, least, -least, least, 1.0, float("inf")])
    expected = torch.cat([expected, torch.tensor([least, least, least, least, least, 0.0, float("-inf")])]).half()
    assert torch.equal(WEIGHT_OPERATORS["CastHalf"]([x], {}).view(torch.int16), expected.view(torch.int16))
    assert WEIGHT_OPERATORS["CastHalf"]([torch.tensor([float("nan")])], {}).isnan().all()
