"""The call settled: every form of sample_input and dynamic_axes, and every wrong one with the list of what is valid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Arguments, Box, Cnn, Function, Pair, TwoInputs, captured, error_of, exported, line_of
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import InputWrite, TensorSpec

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
        (
            (),
            (
                "sample_input: got 0 positional arguments (missing a required argument: 'a'); "
                "expected what forward takes: (a: "
                "'torch.Tensor', b: 'torch.Tensor')"
            ),
        ),
        (
            (X,),
            (
                "sample_input: got 1 positional argument (missing a required argument: 'b'); "
                "expected what forward takes: (a: "
                "'torch.Tensor', b: 'torch.Tensor')"
            ),
        ),
        (
            (X, X, X),
            (
                "sample_input: got 3 positional arguments (too many positional arguments); expected "
                "what forward takes: (a: "
                "'torch.Tensor', b: 'torch.Tensor')"
            ),
        ),
        (
            {"a": X, "c": X},
            (
                "sample_input: got the keywords a, c (missing a required argument: 'b'); expected "
                "what forward takes: (a: "
                "'torch.Tensor', b: 'torch.Tensor')"
            ),
        ),
        ((1, 2), "sample_input: got no tensor; expected at least one tensor; pass what forward takes"),
        (
            (X, X.to_sparse()),
            "input 'b': got layout sparse_coo; expected a dense tensor of real numbers on the CPU "
            "or a CUDA device; pass its to_dense()",
        ),
        (
            (X, X.to("meta")),
            "input 'b': got device meta; expected a dense tensor of real numbers on the CPU or a "
            "CUDA device; move model and sample there",
        ),
        (
            (X, X.to(torch.complex64)),
            "input 'b': got dtype complex64; expected a dense tensor of real numbers on the CPU "
            "or a CUDA device; pass torch.view_as_real(...) of it",
        ),
        (
            (X, X.to(torch.float8_e5m2)),
            "input 'b': got dtype float8_e5m2; expected one of float32, float16, bfloat16, float64, int64, int32, "
            "int16, int8, uint8, bool; pass it in float32",
        ),
        (
            (X, X.to(torch.uint16)),
            "input 'b': got dtype uint16; expected one of float32, float16, bfloat16, float64, int64, int32, "
            "int16, int8, uint8, bool; pass it in int64",
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
        (quantized, "got a quantized tensor", "pass its dequantize()"),
        (nested, "got a nested tensor", "pass its to_padded_tensor(0) and a mask"),
    ],
    ids=["quantized", "nested"],
)
def test_tensor_of_another_kind_is_refused(make: Callable[[], torch.Tensor], got: str, fix: str) -> None:
    """A tensor with a scale or a shape of its own is none that an engine takes."""
    with pytest.raises(InputError) as error:
        captured(DOUBLE, make())
    allowed = "expected a dense tensor of real numbers on the CPU or a CUDA device"
    assert str(error.value) == f"input 'x': {got}; {allowed}; {fix}"


def test_pitfall_12_keywords_reach_the_parameters_that_they_name() -> None:
    """A keyword after a skipped optional, in any order, is bound by name, and the reference answers with it."""
    settled = captured(Arguments(), {"shift": torch.full((4, 3), 5.0), "x": X, "extra": torch.ones(4, 3)})
    assert [spec.name for spec in settled.signature.inputs] == ["x", "shift", "extra"]
    flat = settled.reference(settled.sample)
    assert torch.equal(flat.leaves[0], X * 2.0 + 1 - 5)


# names that collide


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
        "model: got a failure of PyTorch itself on inputs of shape [4, 3], [5, 5]: RuntimeError: The "
        "size of tensor a (3) must "
        "match the size of tensor b (5) at non-singleton dimension 1; expected a model that answers "
        "them; call the model with these shapes and correct "
        "that first "
        f"(at {error.value.source})"
    )


def test_half_model_refuses_a_float_sample_as_pytorch_does() -> None:
    """What eager PyTorch refuses is not exported."""
    with pytest.raises(ExportError) as error:
        captured(Cnn().half(), torch.randn(2, 3, 8, 8))
    assert error.value.got.startswith(
        "a failure of PyTorch itself on inputs of shape [2, 3, 8, 8]: RuntimeError: Input type"
    )
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
    changed = " (a call changes 'calls')" if isinstance(model, Counter) else ""
    assert str(error.value) == (
        f"model: got different results of two calls on the same input{changed}; expected a function "
        "of its inputs alone, since an engine keeps no state and draws no random numbers; pass the "
        "state as an input and return it, or take randomness out of inference"
    )


def test_model_that_answers_nan_twice_is_the_same() -> None:
    """NaN in both answers is no difference."""
    assert captured(Function(lambda x, w: x / 0 * 0), X).signature.outputs[0].name == "output"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            Function(lambda x, w: 3),
            "model: got a result without a tensor; expected at least one tensor; return one from forward",
        ),
        (
            Function(lambda x, w: {"f": torch.fft.fft(x)}),
            "model: got a result 'f' of complex64; expected real numbers, since ONNX has no "
            "operators on complex ones; return torch.view_as_real(...) of it",
        ),
        (
            Function(lambda x, w: {"f": x.to(torch.float8_e5m2)}),
            "model: got a result 'f' of float8_e5m2; expected one of float32, float16, bfloat16, float64, int64, "
            "int32, int16, int8, uint8, bool; return it before the cast, and cast it after the call",
        ),
        (
            Function(lambda x, w: {x}),
            "result 'output': got a builtins.set; expected tensors, None, bool, int, float, str, and "
            "dicts, lists, tuples, NamedTuples, dataclasses of these",
        ),
    ],
    ids=["no tensor", "complex", "float8", "set"],
)
def test_result_that_no_engine_gives_is_refused(model: nn.Module, text: str) -> None:
    """Results without tensors, of types without operators or in unknown containers are refused at once."""
    with pytest.raises(ExportError) as error:
        captured(model, X)
    assert str(error.value) == text


def test_input_that_the_model_writes_into_is_refused() -> None:
    """The input and the line are named, the sample is not written to, and the fix works."""
    sample = torch.ones(4, 3)
    with pytest.raises(ExportError) as error:
        captured(Writer(), (X, sample))
    assert str(error.value) == (
        "model: got a write into its input 'b'; expected a forward that only reads its inputs, since "
        "an engine leaves them as they are; pass config=BuildConfig(mutations='write_back') to deploy (to export: "
        "mutations='write_back'), and calls copy the new values into the caller's tensors; or write into a clone "
        f"in forward, and return what is needed (at {line_of(Writer, 'b[:, 0] = 0')})"
    )
    assert torch.equal(sample, torch.ones(4, 3))
    assert captured(Function(lambda x, w: (x.clone().mul_(2), x)), X).notes == ()


def test_written_inputs_become_outputs_where_they_are_to_be_written_back() -> None:
    """Each has an output with its new value: the result's own tensor where the model returns the input, or another."""
    call = captured(Function(lambda x, w: {"y": x * 2, "x": x.add_(1), "again": x}), X, mutations="write_back")
    assert call.signature.writes == (InputWrite("x", "output.x"),)
    call = captured(Writer(), (X, X + 1), mutations="write_back")
    assert call.signature.writes == (InputWrite("b", "b.written"),)
    assert [spec.name for spec in call.signature.outputs] == ["output", "b.written"]
    answer = call.reference([X, X + 1])
    assert torch.equal(answer.leaves[1][:, 1:], X[:, 1:] + 1)
    assert not answer.leaves[1][:, 0].any()


def test_input_that_changes_its_shape_is_refused() -> None:
    """The caller's tensor would have to get another shape; that is refused, also where values are written back."""
    with pytest.raises(ExportError) as error:
        captured(Function(lambda x, w: x.unsqueeze_(0) * 2), X, mutations="write_back")
    assert str(error.value).startswith(
        "model: got a change of its input 'x' from shape [4, 3] to [1, 4, 3]; expected a forward that leaves the "
        "shapes of its inputs as they are; use the operator without the underscore"
    )


def test_write_behind_the_version_counter_is_refused() -> None:
    """A write through .data counts too."""
    with pytest.raises(ExportError, match="a write into its input 'x'"):
        captured(Function(lambda x, w: x.data.add_(1)), X)


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
        settled = captured(TwoInputs(), (torch.ones(4, 3), torch.ones(4, 3)))
        with pytest.raises(ExportError, match="a write into its input 'b'"):
            captured(Writer(), (torch.ones(4, 3), torch.ones(4, 3)))
    assert settled.notes == ()


def test_parameters_are_found_behind_a_decorator() -> None:
    """A forward that was wrapped by a decorator keeps its parameters' names."""
    settled = captured(Decorated(), {"b": X, "a": X}, {"b": {0: "n"}, "a": {0: "n"}})
    assert [spec.name for spec in settled.signature.inputs] == ["a", "b"]


def test_model_on_the_meta_device_is_refused() -> None:
    """It has no values to export; the first such tensor is named."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, device="meta"))
    with pytest.raises(InputError) as error:
        captured(model, torch.rand(2, 3))
    assert str(error.value) == (
        "model: got '1.weight' on the meta device, which holds no values; expected parameters with values; "
        "make the model on a real device, or call model.to_empty(device=...) and load a state_dict"
    )
