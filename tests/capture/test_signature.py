"""The call settled: every form of sample_input and dynamic_axes, and every wrong one with the list of what is valid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Arguments, Box, Cnn, Function, Pair, TwoInputs, captured, error_of, exported, line_of
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError
from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import Axis, Profile, TensorSpec

X = torch.randn(4, 3)
DOUBLE = Function(lambda x, w: x * 2)


class Containers(nn.Module):
    """Takes a dict, a list and a dataclass, gives a NamedTuple around a dict."""

    def forward(self, batch: dict[str, Any], states: list[torch.Tensor], box: Box) -> Pair:
        total = batch["pixels"] * batch["scale"] + states[0] + box.tensor
        return Pair({"sum": total, "none": None}, [states[1]])


class Counter(nn.Module):
    """Answers by how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Writer(nn.Module):
    """Writes into its second input."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        b[:, 0] = 0
        return a + b


def logged(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As libraries wrap forward to count or log."""

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(TwoInputs):
    """Its forward says (*args, **kwargs) to those who do not look behind it."""

    forward = logged(TwoInputs.forward)


# sample_input


@pytest.mark.parametrize(
    ("sample", "names"),
    [
        (X, ["x"]),
        ((X, X), ["x", "mask"]),
        ({"x": X, "shift": X}, ["x", "shift"]),
        ({"shift": X, "x": X}, ["x", "shift"]),
        (Inputs(X, shift=X), ["x", "shift"]),
        ((X, None, X, X), ["x", "rest.0", "rest.1"]),
        ({"x": X, "extra": X, "more": X}, ["x", "extra", "more"]),
    ],
    ids=["tensor", "tuple", "kwargs", "kwargs in another order", "both", "variadic", "variadic kwargs"],
)
def test_inputs_are_named_by_forwards_parameters(sample: Any, names: list[str]) -> None:
    """Names and order are forward's, whatever the sample's order, and skipped optionals leave no gap."""
    settled = captured(Arguments(), sample)
    assert [spec.name for spec in settled.signature.inputs] == names
    assert len(settled.sample) == len(names)


def test_signature_holds_structure_dtypes_and_shapes() -> None:
    """Nested arguments and results are flattened by name, constants stay beside them."""
    sample = ({"pixels": X, "scale": 2}, [X, torch.arange(2)], Box(X))
    settled = captured(Containers(), sample, {"batch.pixels": [0], "states.0": {-2: "rows"}, "box.tensor": {0: "rows"}})
    assert settled.signature.inputs == (
        TensorSpec("batch.pixels", "float32", ("batch_pixels_dim_0", 3)),
        TensorSpec("states.0", "float32", ("rows", 3)),
        TensorSpec("states.1", "int64", (2,)),
        TensorSpec("box.tensor", "float32", ("rows", 3)),
    )
    assert settled.signature.outputs == (
        TensorSpec("left.sum", "float32", (4, 3)),
        TensorSpec("right.0", "int64", (2,)),
    )
    assert [parameter.name for parameter in settled.signature.parameters] == ["batch", "states", "box"]
    assert settled.signature.output.cls is Pair


def test_output_called_like_an_input_gets_another_name() -> None:
    """Names are unique among inputs and outputs together."""
    settled = captured(Function(lambda x, w: {"x": x * 2, "y": x}), X)
    assert [spec.name for spec in settled.signature.outputs] == ["output.x", "y"]


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ((), "sample_input: missing a required argument: 'a', forward takes (a: 'torch.Tensor', b: 'torch.Tensor')"),
        ((X,), "sample_input: missing a required argument: 'b', forward takes (a: 'torch.Tensor', b: 'torch.Tensor')"),
        (
            (X, X, X),
            "sample_input: too many positional arguments, forward takes (a: 'torch.Tensor', b: 'torch.Tensor')",
        ),
        (
            {"a": X, "c": X},
            "sample_input: missing a required argument: 'b', forward takes (a: 'torch.Tensor', b: 'torch.Tensor')",
        ),
        ((1, 2), "sample_input: no tensor in it, at least one tensor; pass what forward takes"),
        (
            (X, X.to_sparse()),
            "input 'b': layout is sparse_coo, dense tensors of real numbers on the CPU or a CUDA device; pass its "
            "to_dense()",
        ),
        (
            (X, X.to("meta")),
            "input 'b': device is meta, dense tensors of real numbers on the CPU or a CUDA device; move model and "
            "sample there",
        ),
        (
            (X, X.to(torch.complex64)),
            "input 'b': dtype is complex64, dense tensors of real numbers on the CPU or a CUDA device; pass "
            "torch.view_as_real(...) of it",
        ),
    ],
)
def test_sample_that_does_not_fit_is_refused(sample: Any, text: str) -> None:
    """The error says what forward takes, or what is wrong with which tensor."""
    with pytest.raises(InputError) as error:
        captured(TwoInputs(), sample)
    assert str(error.value).startswith(text)
    if "forward takes (" in text:
        fix = "pass a tuple of positionals, a Mapping of keywords, or Inputs(*args, **kwargs)"
        assert error.value.fix == fix


def quantized() -> torch.Tensor:
    """An int8 tensor with a scale of its own."""
    return torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    """A tensor of tensors."""
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.filterwarnings("ignore")  # torch's, on the age of both kinds
@pytest.mark.parametrize(
    ("make", "got", "fix"),
    [
        (quantized, "it is a quantized tensor", "pass its dequantize()"),
        (nested, "it is a nested tensor", "pass its to_padded_tensor(0) and a mask"),
    ],
    ids=["quantized", "nested"],
)
def test_tensor_of_another_kind_is_refused(make: Callable[[], torch.Tensor], got: str, fix: str) -> None:
    """A tensor with a scale or a shape of its own is none that an engine takes."""
    with pytest.raises(InputError) as error:
        captured(DOUBLE, make())
    allowed = "dense tensors of real numbers on the CPU or a CUDA device"
    assert str(error.value) == f"input 'x': {got}, {allowed}; {fix}"


def test_pitfall_12_keywords_reach_the_parameters_that_they_name() -> None:
    """A keyword after a skipped optional, in any order, is bound by name, and the reference answers with it."""
    settled = captured(Arguments(), {"shift": torch.full((4, 3), 5.0), "x": X, "extra": torch.ones(4, 3)})
    assert [spec.name for spec in settled.signature.inputs] == ["x", "shift", "extra"]
    flat = settled.reference(settled.sample)
    assert torch.equal(flat.leaves[0], X * 2.0 + 1 - 5)


# axes


@pytest.mark.parametrize(
    ("axes", "ranges"),
    [
        ({"a": {0: "n"}, "b": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"a": {-2: "n"}, "b": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"b": {0: "n"}, "a": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"b": [0]}, {"b_dim_0": (1, 4, 4)}),
        ({"b": (0, -1)}, {"b_dim_0": (1, 4, 4), "b_dim_1": (1, 3, 3)}),
        ({"b": {1: None}}, {"b_dim_1": (1, 3, 3)}),
        ({"a": {0: Axis("n", 2, 6, 9)}, "b": {0: "n"}}, {"n": (2, 6, 9)}),
        ({"a": {0: Axis("n", max=9)}}, {"n": (1, 4, 9)}),
        ({"a": {0: Axis("n", opt=9)}}, {"n": (1, 9, 9)}),
        ({"a": {0: Axis("n", 2)}}, {"n": (2, 4, 4)}),
        ({"a": {0: Axis("n", max=8, multiple_of=2)}}, {"n": (2, 4, 8)}),
        ({"a": {0: Axis("n", 4, 4, 4)}}, {}),
        ({"a": {}}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_axes_are_read_in_every_form(axes: Any, ranges: dict[str, tuple[int, int, int]]) -> None:
    """Names, lists, negative dimensions and Axis, shared by name; a range of one size is no axis."""
    settled = captured(TwoInputs(), (X, X), axes)
    assert {axis.name: axis.range for axis in settled.signature.axes} == ranges
    assert settled.profiles == (Profile(ranges),)
    shapes = {spec.name: spec.shape for spec in settled.signature.inputs}
    assert {dim for shape in shapes.values() for dim in shape if isinstance(dim, str)} == set(ranges)


def test_pitfall_12_axes_go_to_the_input_that_is_named() -> None:
    """Entries in another order than forward's, or for the second input only, reach the input of that name."""
    settled = captured(TwoInputs(), (X, torch.randn(1, 3)), {"b": {1: "n"}, "a": {1: "n", 0: "m"}})
    assert [spec.shape for spec in settled.signature.inputs] == [("m", "n"), (1, "n")]
    settled = captured(TwoInputs(), {"b": X, "a": torch.randn(1, 3)}, {"b": {0: "m"}})
    assert [(spec.name, spec.shape) for spec in settled.signature.inputs] == [("a", (1, 3)), ("b", ("m", 3))]


def test_axis_of_a_sample_of_one_takes_the_range_that_it_is_given() -> None:
    """A batch of one is a fine sample for a batch of up to 8."""
    settled = captured(DOUBLE, X[:1], {"x": {0: Axis("n", 1, 1, 8)}})
    assert settled.signature.axis("n").range == (1, 1, 8)
    settled = captured(DOUBLE, X[:1], {"x": {0: "n"}}, [{"n": (1, 4, 8)}])
    assert settled.signature.axis("n").range == (1, 4, 8)


@pytest.mark.parametrize(
    ("profiles", "axis", "found"),
    [
        ([{"n": (1, 2, 3)}], "n", [(1, 2, 3)]),
        ([{"n": (1, 1, 1)}, {"n": (2, 8, 16)}], "n", [(1, 1, 1), (2, 8, 16)]),
        ([{"n": [1, 2, 3]}, Profile({"n": (2, 3, 4)})], "n", [(1, 2, 3), (2, 3, 4)]),
        ([{"n": (1, 1, 2)}, {}], Axis("n", 1, 4, 8), [(1, 1, 2), (1, 4, 8)]),
        ([], "n", [(1, 4, 4)]),
    ],
)
def test_profiles_give_the_ranges(profiles: Any, axis: Any, found: list[tuple[int, int, int]]) -> None:
    """Several profiles are kept in order, and one that says nothing of an axis takes its Axis's range."""
    settled = captured(DOUBLE, X, {"x": {0: axis}}, profiles)
    assert [profile.ranges["n"] for profile in settled.profiles] == found
    low, _, high = settled.signature.axis("n").range
    assert low <= min(f[0] for f in found)
    assert high >= max(f[2] for f in found)


INPUTS = "inputs are a, b; outputs are output; use one of these names"


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ({"c": {0: "n"}}, f"dynamic_axes['c']: no such tensor, {INPUTS}"),
        ({0: {0: "n"}}, f"dynamic_axes[0]: no such tensor, {INPUTS}"),
        ([0], "dynamic_axes: a list, a dict as in torch.onnx.export; e.g. {'a': {0: 'batch'}}"),
        (
            {"a": "n"},
            "dynamic_axes['a']: a str, {dimension: name or Axis} or [dimension, ...]; e.g. {0: 'batch'}",
        ),
        ({"a": {2: "n"}}, "dynamic_axes['a']: dimension 2, valid dimensions are 0..1 (or -2..-1)"),
        ({"a": {-3: "n"}}, "dynamic_axes['a']: dimension -3, valid dimensions are 0..1 (or -2..-1)"),
        ({"a": {True: "n"}}, "dynamic_axes['a']: dimension True, valid dimensions are 0..1 (or -2..-1)"),
        ({"a": {"0": "n"}}, "dynamic_axes['a']: dimension '0', valid dimensions are 0..1 (or -2..-1)"),
        ({"a": [0.5]}, "dynamic_axes['a']: dimension 0.5, valid dimensions are 0..1 (or -2..-1)"),
        ({"a": {0: "n", -2: "n"}}, "dynamic_axes['a']: dimension 0 twice; name it once"),
        (
            {"a": {0: 8}},
            "dynamic_axes['a']: 8 for dimension 0, a name or torch2engine.Axis; e.g. {0: Axis('batch', 1, 8, 32)}",
        ),
        (
            {"a": {0: "my batch"}},
            "axis name: 'my batch' is not an identifier; use letters, digits and underscores, e.g. Axis('batch')",
        ),
        (
            {"a": {0: "n", 1: "n"}},
            "axis 'n': it is 4 in 'a' dimension 0 and 3 in 'a' dimension 1 of sample_input, one size per name; use two "
            "names, or a sample whose sizes agree",
        ),
        (
            {"a": {0: Axis("n", 1, 4, 8)}, "b": {0: Axis("n", 1, 4, 9)}},
            "axis 'n': two ranges, Axis(name='n', min=1, opt=4, max=8, multiple_of=1) and Axis(name='n', min=1, opt=4, "
            "max=9, multiple_of=1), one range per name; pass the same Axis in both places",
        ),
        (
            {"a": {0: Axis("n", 1, 2, 3)}},
            "axis 'n': sample_input has 4, 1..3; take a sample inside the range, or widen the Axis",
        ),
        (
            {"a": {0: Axis("n", 8, 8, 16)}},
            "axis 'n': sample_input has 4, 8..16; take a sample inside the range, or widen the Axis",
        ),
        ({"a": {0: Axis("n", 8)}}, "axis 'n': sample_input has 4, at least min=8; give opt and max"),
        (
            {"a": {0: Axis("n", 3, 6, 12, multiple_of=3)}},
            "axis 'n': sample_input has 4, 3..12 in multiples of 3; take a sample inside the range, or widen the Axis",
        ),
        ({"output": {"0": "n"}}, "dynamic_axes['output']: dimension '0', valid dimensions are ints"),
    ],
)
def test_wrong_axes_are_refused_with_what_is_valid(axes: Any, text: str) -> None:
    """Unknown tensors, dimensions out of range, contradicting names and ranges: each error lists the valid ones."""
    with pytest.raises(DynamicAxisError) as error:
        captured(TwoInputs(), (X, X), axes)
    assert str(error.value) == text


@pytest.mark.parametrize("axis", ["n", Axis("n")], ids=["name", "Axis"])
def test_axis_without_a_range_is_refused_for_a_sample_of_one(axis: Any) -> None:
    """1..1 would be no axis: it is refused, not silently fixed."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, X[:1], {"x": {0: axis}})
    assert str(error.value) == (
        "axis 'n': sample_input has 1, so that its range would be 1..1, without opt and max it ranges from 1 to the "
        "sample's size; give a range, e.g. Axis('n', 1, 8, 32), or a larger sample"
    )


def test_axis_of_an_empty_sample_is_refused() -> None:
    """An engine can't answer empty axes, so an empty sample is none."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, torch.ones(0, 3), {"x": {0: "n"}})
    assert str(error.value) == "axis 'n': sample_input has 0, at least min=1; give opt and max"


def test_axis_of_a_scalar_is_refused() -> None:
    """A tensor without dimensions has none to be dynamic."""
    with pytest.raises(DynamicAxisError) as error:
        captured(Function(lambda x, w: x * 2), torch.tensor(2.0), {"x": {0: "n"}})
    assert str(error.value) == "dynamic_axes['x']: dimension 0, valid dimensions are none: it is a scalar"


@pytest.mark.parametrize(
    ("profiles", "axes", "text"),
    [
        ({"n": (1, 2, 3)}, {0: "n"}, "profiles: a dict, a list of dicts; e.g. [{'batch': (1, 8, 32)}]"),
        (Profile({"n": (1, 2, 3)}), {0: "n"}, "profiles: a Profile, a list of dicts; e.g. [{'batch': (1, 8, 32)}]"),
        ([(1, 2, 3)], {0: "n"}, "profiles: a tuple, a list of dicts; e.g. [{'batch': (1, 8, 32)}]"),
        ([{"m": (1, 2, 3)}], {0: "n"}, "profiles: no axis named 'm', axes are n"),
        ([{"m": (1, 2, 3)}], {}, "profiles: no axis named 'm', axes are none: give dynamic_axes"),
        ([{"n": 8}], {0: "n"}, "profile of axis 'n': 8, three ints (min, opt, max); e.g. {'n': (1, 8, 32)}"),
        (
            [{"n": (4, 2, 8)}],
            {0: "n"},
            "axis 'n': min 4, opt 2, max 8, min <= opt <= max; give sizes in that order, e.g. Axis('n', 2, 4, 8)",
        ),
        (
            [{"n": (1, 8, 16)}],
            {0: Axis("n", 1, 4, 8)},
            "axis 'n': a profile asks for (1, 8, 16), its Axis allows 1..8; widen the Axis, or leave the range to the "
            "profiles by naming the axis only",
        ),
        (
            [{"n": (2, 4, 7)}],
            {0: Axis("n", 2, 4, 8, multiple_of=2)},
            "axis 'n': a profile asks for (2, 4, 7), its Axis allows 2..8 in multiples of 2; widen the Axis, or leave "
            "the range to the profiles by naming the axis only",
        ),
    ],
)
def test_wrong_profiles_are_refused_with_what_is_valid(profiles: Any, axes: Any, text: str) -> None:
    """Unknown axes, other forms and ranges outside the Axis are errors that say what would be right."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, X, {"x": axes}, profiles)
    assert str(error.value) == text


def test_axes_named_for_outputs_are_kept_for_export() -> None:
    """Entries for outputs are no inputs, and export checks them."""
    settled = captured(DOUBLE, X, {"output": {0: Axis("n"), 1: None}, "x": {0: "n"}})
    assert settled.output_axes == {"output": {0: "n", 1: None}}


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda x: {1: x, "1": x + 1}, ["1", "1_1"]),
        (lambda x: {"a": {"b": x}, "a.b": x + 1}, ["a.b", "a.b_1"]),
        (lambda x: {"x": x * 2, "output.x": x}, ["output.x", "output.x_1"]),
    ],
    ids=["int and str keys", "dotted key", "like an input"],
)
def test_outputs_whose_names_collide_stay_apart(result: Callable[[Any], Any], names: list[str]) -> None:
    """Every output gets a name of its own, and the exported answers stand where the model's do."""
    model = Function(lambda x, w: result(x))
    settled = captured(model, X)
    assert [spec.name for spec in settled.signature.outputs] == names
    artifact, cases = exported(model, X)
    assert error_of(artifact, cases) == 0


def test_inputs_whose_names_collide_stay_apart() -> None:
    """A keyword named like a part of another argument is another input."""

    class Keywords(nn.Module):
        def forward(self, a: Any, **named: torch.Tensor) -> torch.Tensor:
            return a["b"] - named["a.b"]

    sample = Inputs({"b": X}, **{"a.b": X + 1})
    assert [spec.name for spec in captured(Keywords(), sample).signature.inputs] == ["a.b", "a.b_1"]
    artifact, cases = exported(Keywords(), sample)
    assert error_of(artifact, cases) == 0


# what the model does


def test_model_that_fails_is_reported_at_its_own_line() -> None:
    """PyTorch's error on the sample is shown with the shapes and the user's line, before anything is exported."""
    model = Arguments()
    with pytest.raises(ExportError) as error:
        captured(model, (X, torch.randn(5, 5)))
    assert error.value.source == line_of(Arguments, "x * mask * scale")
    assert str(error.value) == (
        "model: PyTorch itself fails on inputs of shape [4, 3], [5, 5]: RuntimeError: The size of tensor a (3) must "
        "match the size of tensor b (5) at non-singleton dimension 1; call the model with these shapes and mend "
        "that first "
        f"(at {error.value.source})"
    )


def test_half_model_refuses_a_float_sample_as_pytorch_does() -> None:
    """What eager PyTorch refuses is not exported."""
    with pytest.raises(ExportError) as error:
        captured(Cnn().half(), torch.randn(2, 3, 8, 8))
    assert error.value.got.startswith("PyTorch itself fails on inputs of shape [2, 3, 8, 8]: RuntimeError: Input type")
    assert error.value.source == line_of(Cnn, "return self.head")


@pytest.mark.parametrize(
    "model",
    [
        Counter(),
        Function(lambda x, w: x + torch.randn_like(x)),
        Function(lambda x, w: torch.nn.functional.dropout(x, 0.5)),
        Function(lambda x, w: (x, float(torch.rand(())))),
    ],
    ids=["state", "noise", "dropout", "random constant"],
)
def test_model_that_answers_twice_in_two_ways_is_refused(model: nn.Module) -> None:
    """An engine keeps no state and draws no random numbers."""
    with pytest.raises(ExportError) as error:
        captured(model, X)
    assert str(error.value) == (
        "model: two calls on the same input give different results, a function of its inputs alone, since an engine "
        "keeps no state and draws no random numbers; pass the state as an input and return it, or take randomness out "
        "of inference"
    )


def test_model_that_answers_nan_twice_is_the_same() -> None:
    """NaN in both answers is no difference."""
    assert captured(Function(lambda x, w: x / 0 * 0), X).signature.outputs[0].name == "output"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Function(lambda x, w: 3), "model: its result holds no tensor, at least one output tensor"),
        (
            Function(lambda x, w: {"f": torch.fft.fft(x)}),
            "model: its result 'f' is complex64, real numbers: ONNX has no operators on complex ones; return "
            "torch.view_as_real(...) of it",
        ),
        (
            Function(lambda x, w: {x}),
            "result 'output': a builtins.set, tensors, None, bool, int, float, str, and dicts, lists, tuples, "
            "NamedTuples, dataclasses of these",
        ),
    ],
    ids=["no tensor", "complex", "set"],
)
def test_result_that_no_engine_gives_is_refused(model: nn.Module, text: str) -> None:
    """Results without tensors, with complex numbers or in unknown containers are refused at once."""
    with pytest.raises(ExportError) as error:
        captured(model, X)
    assert str(error.value) == text


def test_input_that_the_model_writes_into_is_noted() -> None:
    """The sample is not written to, and a note says which input the model changes."""
    sample = torch.ones(4, 3)
    settled = captured(Writer(), (X, sample))
    assert settled.notes == ("the model writes into its input 'b'; the engine leaves inputs as they are",)
    assert torch.equal(sample, torch.ones(4, 3))
    assert captured(TwoInputs(), (X, X)).notes == ()


@pytest.mark.parametrize(
    ("model", "sample", "precision"),
    [
        (Cnn(), torch.randn(2, 3, 8, 8), "fp32"),
        (Cnn().half(), torch.randn(2, 3, 8, 8).half(), "fp16"),
        (Cnn().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16(), "bf16"),
        (TwoInputs(), (X.half(), X.bfloat16()), "bf16"),
        (TwoInputs(), (X.double(), X), "fp32"),
    ],
)
def test_precision_is_the_lowest_that_the_model_asks_for(model: nn.Module, sample: Any, precision: str) -> None:
    """Parameters, buffers, inputs and outputs decide."""
    assert captured(model, sample).precision == precision


def test_sample_that_requires_grad_or_is_a_parameter_is_taken_as_values() -> None:
    """A leaf of a graph is a sample as good as any, and stays out of the graph."""
    sample = nn.Parameter(X.clone())
    settled = captured(DOUBLE, sample)
    assert not settled.sample[0].requires_grad
    assert sample.grad is None


def test_capture_works_in_inference_mode() -> None:
    """A user who already serves under torch.inference_mode() can capture there."""
    with torch.inference_mode():
        settled = captured(Writer(), (torch.ones(4, 3), torch.ones(4, 3)))
    assert settled.notes == ("the model writes into its input 'b'; the engine leaves inputs as they are",)


def test_parameters_are_found_behind_a_decorator() -> None:
    """A forward that was wrapped by a decorator keeps its parameters' names."""
    settled = captured(Decorated(), {"b": X, "a": X}, {"b": {0: "n"}, "a": {0: "n"}})
    assert [spec.name for spec in settled.signature.inputs] == ["a", "b"]
