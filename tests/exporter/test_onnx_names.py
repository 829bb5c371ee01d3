"""The graph made ours: names that never clash, and on every node the module and the line that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

from tests.support.models import (
    BATCH,
    Block,
    Cnn,
    Conditional,
    Function,
    Nested,
    answer,
    error_of,
    exported,
    graph_of,
    line_of,
)
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.constants import MODULE_KEY, SOURCE_KEY
from torch2engine.core.package import PACKAGE_ROOT
from torch2engine.core.preprocess import ORIGIN
from torch2engine.core.spec import Axis
from torch2engine.exporter.onnx_names import name_axes, name_tensors, record_origins

X = torch.randn(4, 3)
CLASS_WITHOUT_A_FILE = """
class Fileless(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())
"""


def nodes_of(graph: Any) -> Iterator[Any]:
    """Every node, those inside others included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def origins(artifact: OnnxArtifact) -> dict[str, tuple[str, str]]:
    """(module path, source) of every node by its name; fails where a node has none."""
    found: dict[str, tuple[str, str]] = {}
    for node in nodes_of(graph_of(artifact)):
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        assert not any(key.startswith("pkg.torch") for key in metadata)
        found[node.name] = (metadata[MODULE_KEY], metadata[SOURCE_KEY])
    return found


# origins


def test_every_node_has_its_module_and_its_line() -> None:
    """The path is that of named_modules(), the line the user's innermost forward."""
    artifact, _ = exported(Nested(), X, {"x": BATCH})
    found = origins(artifact)
    assert found["node_linear"] == ("blocks.0.linear", line_of(Block, "self.linear(x)"))
    assert found["node_relu"] == ("blocks.0", line_of(Block, "torch.relu"))
    assert found["node_linear_1"] == ("blocks.1.linear", line_of(Block, "self.linear(x)"))
    assert found["node_linear_2"] == ("head.0", line_of(Nested, "self.head(x)"))
    assert found["node_gelu"] == ("head.1", line_of(Nested, "self.head(x)"))
    assert found["node_exp"] == ("", line_of(Nested, "y.exp()"))
    assert set(dict(found.values())) <= {name for name, _ in Nested().named_modules()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["rewritten", "folded only"])
def test_nodes_that_an_optimisation_made_have_an_origin_too(dtype: torch.dtype) -> None:
    """Fused and folded nodes take their neighbours', so no node is without."""
    artifact, _ = exported(Cnn().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype), {"image": BATCH})
    modules = {name for name, _ in Cnn().named_modules()}
    for name, (module, source) in origins(artifact).items():
        assert module in modules, name
        assert source.rpartition(":")[0] == line_of(Cnn, "forward").rpartition(":")[0], name


def test_model_without_a_line_of_its_own_still_has_its_modules() -> None:
    """A bare nn.Sequential runs no line of the user's: the paths are there, and the source is the Sequential's."""
    artifact, _ = exported(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU())), X)
    assert {name: module for name, (module, _) in origins(artifact).items()} == {"node_linear": "0", "node_relu": "1.0"}
    assert all("container.py:" in source for _, source in origins(artifact).values())


def test_nodes_inside_a_branch_have_their_origin() -> None:
    """Subgraphs are no blind spot."""
    artifact, _ = exported(Conditional(), X, {"x": BATCH})
    inner = [node for node in nodes_of(graph_of(artifact)) if node.op_type in ("Sin", "Cos")]
    assert len(inner) == 2
    found = origins(artifact)
    assert all(found[node.name][1] == line_of(Conditional, "return torch.cond") for node in inner)


def test_wrapped_models_keep_the_users_paths() -> None:
    """torch.compile and DataParallel leave no trace in the paths."""
    artifact, _ = exported(nn.DataParallel(nn.Sequential(Block())), X)
    assert {module for module, _ in origins(artifact).values()} == {"0.linear", "0"}


# names


class Clashing(nn.Module):
    """Inputs, outputs, weights and inner values that want the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.linear = nn.Linear(3, 3)
        self.output = nn.Parameter(torch.tensor([4.0, 5.0, 6.0]))
        self.add = nn.ParameterDict({"weight": nn.Parameter(torch.tensor([7.0, 8.0, 9.0]))})

    def forward(self, x: Any, linear: Any, mul: Any, val_0: Any = None, sin: Any = None) -> Any:
        y = self.linear(x + self.x) * self.output
        z = torch.sin(y) + linear
        return {"linear": y, "mul": z * mul, "sin": None, "add": z + self.add["weight"], "x": sin, "output": linear}


def test_names_that_clash_are_kept_apart() -> None:
    """Inputs called like outputs, weights and inner values, outputs likewise, None in the middle: valid and right."""
    sample = {name: torch.randn(4, 3) for name in ("x", "linear", "mul", "sin")}
    axes = {name: {0: Axis("batch", 1, 4, 8)} for name in sample}
    artifact, examples = exported(Clashing(), sample, axes)
    graph = graph_of(artifact)
    assert [value.name for value in graph.input] == ["x", "linear", "mul", "sin"]
    outputs = ["output.linear", "output.mul", "add", "output.x", "output"]
    assert [value.name for value in graph.output] == outputs
    names = [value.name for value in (*graph.input, *graph.initializer)]
    names += [name for node in nodes_of(graph) for name in node.output if name]
    assert len(names) == len(set(names))
    onnx.checker.check_model(str(artifact.onnx_path), full_check=True)
    assert error_of(artifact, examples) < 1e-5
    assert list(answer(artifact, examples[0])) == outputs


def test_weights_keep_the_names_of_the_state_dict() -> None:
    """A weight in the file is called as in state_dict(), wherever no input or output has that name."""
    model = Clashing()
    names = ("x", "linear", "mul", "sin")
    artifact, _ = exported(model, {name: torch.randn(4, 3) for name in names})
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph_of(artifact).initializer}
    for name in ("linear.bias", "add.weight"):
        assert (found[name] == model.state_dict()[name].numpy()).all()
    assert (found["x__1"] == model.x.detach().numpy()).all()
    assert (found["output__1"] == model.output.detach().numpy()).all()


def test_inner_values_of_branches_do_not_take_an_inputs_name() -> None:
    """Names inside subgraphs count too."""

    class Branches(nn.Module):
        def forward(self, sin: Any, cos: Any) -> Any:
            return {"add": torch.cond(sin.sum() > 0, lambda a: a.sin() + cos, lambda a: a.cos() * cos, (sin,))}

    artifact, examples = exported(Branches(), (X, X), {"sin": BATCH, "cos": {0: "batch"}})
    names = [name for node in nodes_of(graph_of(artifact)) for name in node.output]
    assert not {"sin", "cos"} & set(names)
    assert error_of(artifact, examples) < 1e-5


# the three steps on graphs made by hand


def value(name: str, shape: list[Any] | None = None) -> onnx_ir.Value:
    """A float32 value."""
    return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape or [2]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))


def test_outputs_that_are_inputs_or_each_other_get_identities() -> None:
    """One value can't carry two names."""
    x = value("x")
    double = onnx_ir.Node("", "Add", [x, x], name="double")
    double.outputs[0].name = "d"
    graph = onnx_ir.Graph([x], [x, double.outputs[0], double.outputs[0], x], nodes=[double], opset_imports={"": 22})
    name_tensors(graph, ["d"], ["a", "b", "c", "e"])
    assert [v.name for v in graph.inputs] == ["d"]
    assert [v.name for v in graph.outputs] == ["a", "b", "c", "e"]
    assert [(n.op_type, n.inputs[0].name, n.outputs[0].name) for n in graph] == [
        ("Add", "d", "b"),
        ("Identity", "d", "a"),
        ("Identity", "b", "c"),
        ("Identity", "d", "e"),
    ]


def test_symbols_are_replaced_as_whole_words_and_at_once() -> None:
    """s1 is not the start of s10, and an axis that is called like a symbol is not replaced again."""
    x = value("x", ["s1", "s10"])
    node = onnx_ir.Node("", "Relu", [x], name="relu")
    node.outputs[0].name, node.outputs[0].shape = "y", onnx_ir.Shape(["2*s1 + s10", 3])
    node.outputs[0].type = x.type
    inner = onnx_ir.Node("", "Relu", [node.outputs[0]], name="inner")
    inner.outputs[0].name, inner.outputs[0].shape = "z", onnx_ir.Shape(["s1 + s10"])
    graph = onnx_ir.Graph([x], [inner.outputs[0]], nodes=[node, inner], opset_imports={"": 22})
    name_axes(graph, {"s1": "s10", "s10": "(n/2)"}, [["s10", "n"], ["s10 + n/2"]])
    assert [str(dim) for dim in x.shape] == ["s10", "n"]
    assert [str(dim) for dim in node.outputs[0].shape] == ["2*s10 + (n/2)", "3"]
    assert [str(dim) for dim in inner.outputs[0].shape] == ["s10 + n/2"]


def test_origins_are_inherited_from_producers_then_consumers() -> None:
    """A node without a trace takes its producer's origin, else its consumer's, else the model's forward."""
    x = value("x")
    first = onnx_ir.Node("", "Relu", [x], name="first")
    known = onnx_ir.Node("", "Relu", [first.outputs[0]], name="known")
    last = onnx_ir.Node("", "Relu", [known.outputs[0]], name="last")
    alone = onnx_ir.Node("", "Relu", [x], name="alone")
    known.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model', 'model.deep', 'relu']"
    known.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "net.py", line 7, in forward\n    y = relu(x)'
    last.metadata_props["pkg.torch.onnx.name_scopes"] = "not a list"
    graph = onnx_ir.Graph(
        [x], [last.outputs[0], alone.outputs[0]], nodes=[first, known, last, alone], opset_imports={"": 22}
    )
    record_origins(graph, "net.py:1")
    found = {n.name: (n.metadata_props[MODULE_KEY], n.metadata_props[SOURCE_KEY]) for n in graph}
    assert found == {
        "first": ("deep", "net.py:7"),
        "known": ("deep", "net.py:7"),
        "last": ("deep", "net.py:7"),
        "alone": ("", "net.py:1"),
    }
    assert all(key in (MODULE_KEY, SOURCE_KEY) for n in graph for key in n.metadata_props)


def origin_of_trace(scopes: list[str], *frames: tuple[str, int]) -> tuple[str, str]:
    """The origin that is recorded for a node with these scopes and stack trace, the innermost last."""
    x = value("x")
    node = onnx_ir.Node("", "Relu", [x], name="relu")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = str([*scopes, "relu"])
    trace = "\n".join(f'  File "{file}", line {line}, in forward' for file, line in frames)
    node.metadata_props["pkg.torch.onnx.stack_trace"] = trace
    record_origins(onnx_ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports={"": 22}), "net.py:1")
    return node.metadata_props[MODULE_KEY], node.metadata_props[SOURCE_KEY]


def test_node_made_outside_of_the_model_is_preprocessing() -> None:
    """What runs in no module of the user's is preprocessing, whichever file of the package made it."""
    files = [str(path) for path in PACKAGE_ROOT.rglob("*.py")]
    assert len(files) > 100
    users = str(PACKAGE_ROOT.with_name("train.py"))
    inside = ["", "model", "model.deep"]
    assert {origin_of_trace([""], (users, 3), (file, 7)) for file in files} == {(ORIGIN, ORIGIN)}
    assert {origin_of_trace(inside, (users, 3), (file, 7)) for file in files} == {("deep", f"{users}:3")}
    assert {origin_of_trace(inside, (file, 7), (users, 3)) for file in files} == {("deep", f"{users}:3")}


def test_class_without_a_file_keeps_its_modules_paths() -> None:
    """Nodes of a class made by exec have no line, but the module is known, which lower precisions need."""
    names: dict[str, Any] = {"nn": nn, "__name__": "made_by_exec"}
    exec(CLASS_WITHOUT_A_FILE, names)  # as `python -c` and the temporary cells of a notebook do
    artifact, _ = exported(names["Fileless"]().eval(), X)
    assert set(origins(artifact).values()) == {("first", "Fileless"), ("", "Fileless"), ("second", "Fileless")}


def test_function_in_another_file_is_not_the_models_line() -> None:
    """torch keeps the frames of forwards: the line is that of the module's forward which called it."""
    artifact, _ = exported(Function(lambda x, w: torch.tanh(x) * w), X)
    assert {source for _, source in origins(artifact).values()} == {line_of(Function, "self.function(x, self.w)")}
