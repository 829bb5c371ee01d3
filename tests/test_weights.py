"""`torch2engine.weights`: weights of an exported graph, worked out again from a module whose parameters have changed.

Enters: models with every trap that a refit can step into. Leaves: proof that the program gives what an export of the
changed module would hold, that it covers every weight, and that a changed structure is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch2engine as t2e
from tests import precision_networks as networks
from torch2engine.artifact import WEIGHTS, OnnxArtifact
from torch2engine.capture import capture
from torch2engine.export import export_onnx
from torch2engine.ort import Session
from torch2engine.preserve import undisturbed
from torch2engine.weights import OPERATORS, Step, WeightProgram

BATCH = {0: t2e.Axis("batch", 1, 8, 32)}
Maker = Callable[[], tuple[nn.Module, torch.Tensor]]


class Norms(nn.Module):
    """BatchNorm behind convolutions of all kinds, behind a linear layer, and alone; with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, eps=0.1))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6))
        self.grouped = nn.Sequential(nn.ConvTranspose2d(6, 6, 2, groups=2), nn.BatchNorm2d(6, affine=False))
        self.fc = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.up(self.deep(self.conv(x))))
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    """An embedding that is also the head's weight, used a third time, doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x)) @ (2 * self.head.weight)


class Parametrized(nn.Module):
    """Weights that are worked out from others at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(6, 7))
        self.second = parametrizations.spectral_norm(nn.Linear(7, 5))
        self.third = parametrizations.weight_norm(nn.Conv1d(1, 3, 2), dim=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)).tanh().unsqueeze(1))


class Folded(nn.Module):
    """Parameters whose values an optimiser would look at: zeros, ones, equal ones, unused ones, sums of several."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        nn.init.zeros_(self.conv.bias)
        self.zero, self.one = nn.Parameter(torch.zeros(2, 1, 1)), nn.Parameter(torch.ones(2, 1, 1))
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.unused = nn.Parameter(torch.ones(3))
        self.low_rank = nn.ParameterList([nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 4))])
        self.register_buffer("scale", torch.full((4,), 3.0))
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first((self.conv(x) + self.zero) * self.one))
        weight = torch.eye(4) + self.low_rank[0] @ self.low_rank[1]
        picked = torch.cat([self.frozen[:2], self.frozen[2:].exp().sqrt()]).reshape(2, 2).t().reshape(-1)
        return (x @ weight) * self.scale + self.shift + picked


class Alone(nn.Module):
    """Answers with a parameter, and with something made of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x + self.weight, self.weight, self.weight.sigmoid() * 2


MODELS: dict[str, Maker] = {
    "norms": lambda: (Norms(), torch.randn(8, 2, 9, 9)),
    "tied": lambda: (Tied(), torch.randint(0, 12, (8, 5))),
    "parametrized": lambda: (Parametrized(), torch.randn(8, 6)),
    "folded": lambda: (Folded(), torch.randn(8, 1, 2, 4)),
    "alone": lambda: (Alone(), torch.randn(8, 3)),
    "resnet": lambda: (networks.ResNet(), torch.randn(8, 1, 16, 16)),
    "vit": lambda: (networks.Vit(), torch.randn(8, 1, 8, 8)),
    "lstm": lambda: (networks.Lstm(), torch.randn(8, 8, 8)),
    "llama": lambda: (networks.Llama(), torch.randn(8, 8, 8)),
    "gru": lambda: (_Last(nn.GRU(6, 5, 2, batch_first=True, bidirectional=True)), torch.randn(8, 4, 6)),
    "transformer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(8, 5, 8)),
}


class _Last(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


def exported(model: nn.Module, x: torch.Tensor) -> OnnxArtifact:
    with undisturbed(model):
        (name,) = (parameter for parameter in ["x", "input", "src"] if parameter in _names(model))
        return export_onnx(capture(model, x, {name: BATCH}), refittable=True)


def _names(model: nn.Module) -> Any:
    import inspect

    return inspect.signature(model.forward).parameters


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
    found = Session(path, as_it_is=True)({given: x.numpy()})
    return max(
        float(np.abs(found[name] - part.numpy()).max() / part.abs().max())
        for name, part in zip(names, wanted, strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_program_gives_the_weights_of_the_changed_module(name: str, tmp_path: Path) -> None:
    """Right before and after, while the old weights are wrong by far; and every float weight is covered."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval()
    artifact = exported(model, x)
    assert distance(artifact.onnx_path, model, x) < 1e-5
    change(model)
    assert distance(artifact.onnx_path, model, x) > 1e-3
    assert distance(refitted(artifact, model, tmp_path), model, x) < 3e-5
    program = program_of(artifact)
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
    """Folding happens in float32 and is rounded once."""
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
    assert float((weight - wanted).norm() / wanted.norm()) < {torch.float64: 1e-6}.get(dtype, torch.finfo(dtype).eps)


def test_norm_in_another_dtype_is_not_folded(tmp_path: Path) -> None:
    """A float32 norm behind a half convolution is rounded where the model rounds."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 1).half(), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x).float())

    program = program_of(exported(Mixed().eval(), torch.randn(8, 2, 4, 4).half()))
    assert not any(step.op.startswith("Folded") for step in program.steps)


def test_values_of_parameters_decide_nothing_about_the_graph() -> None:
    """Zeros, ones and equal tensors give the graph that any others give."""
    torch.manual_seed(0)
    plain, x = MODELS["folded"]()
    other = copy.deepcopy(plain)
    change(other)
    artifacts = [exported(model.eval(), x) for model in (plain, other)]
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
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return model, program_of(exported(model.eval(), x))


def test_missing_parameter_is_refused() -> None:
    """By its path."""
    model, program = structure("resnet")
    del model.head.bias
    model.head.bias = None
    with pytest.raises(t2e.RefitError) as caught:
        program.tensors(model)
    assert str(caught.value) == "'head.bias': the model has it no more, the structure that was deployed"


def test_other_shape_or_dtype_is_refused() -> None:
    """By its path, with both."""
    model, program = structure("resnet")
    model.head = nn.Linear(48, 11)
    with pytest.raises(t2e.RefitError) as caught:
        program.tensors(model)
    assert "torch.float32 [11" in str(caught.value)
    model.head = nn.Linear(48, 10).half()
    with pytest.raises(t2e.RefitError, match=r"is torch.float16 \[10"):
        program.tensors(model)


def test_untied_weights_are_refused() -> None:
    """The graph has one where the model would need two."""
    model, program = structure("tied")
    assert program.shared == (("words.weight", "head.weight"),)
    model.head.weight = nn.Parameter(torch.randn(12, 8))
    with pytest.raises(t2e.RefitError, match=r"'words\.weight' and 'head\.weight': are different tensors now"):
        program.tensors(model)


def test_unused_parameters_may_change_as_they_like() -> None:
    """They are no part of the graph."""
    model, program = structure("folded")
    model.unused = None
    assert "unused" not in program.sources
    program.tensors(model)


def test_operator_that_no_refit_knows_is_refused_at_export() -> None:
    """Rather than found out when the weights have changed."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight.cumsum(0)

    with pytest.raises(t2e.ExportError) as caught:
        exported(Summed().eval(), torch.randn(8, 4))
    text = str(caught.value)
    assert text.startswith("refittable weights: CumSum works on parameters alone, and a refit does not know how")
    assert text.endswith("work this out in a buffer beforehand, or deploy without refittable=True")


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
        Step("Transpose", ("a",), "%4", {"perm": (1, 0)}),
        Step("Cast", ("%4",), "%5", {"to": torch.float16}),
        Step("FoldedBias", ("", "a", "b", "c", "d"), "%6", {"epsilon": 1e-5}),
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
        ({"version": 2}, "its version is 2, this torch2engine reads 1; deploy the model again"),
        ({"steps": [["Exec", [], "x", {}]]}, "it can't be read (['Exec'] are no operators of it); deploy again"),
        ({"sources": {"a": [[1], "nn"]}}, "it can't be read ('nn' is no dtype); deploy again"),
        ({"weights": ...}, "it can't be read ('weights'); deploy again"),
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
    wanted = Session(path, as_it_is=True)({names[0]: arrays[0]})["y"]
    plain = {key: torch.float16 if key == "to" else value for key, value in attributes.items()}
    found = OPERATORS[op]([torch.tensor(array) for array in arrays], plain)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-6)


def test_every_operator_is_tried() -> None:
    """The table above has them all; the folding of BatchNorm is tried on models."""
    assert {op for op, _, _ in CASES} | {"FoldedWeight", "FoldedBias"} == OPERATORS.keys()
