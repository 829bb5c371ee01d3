"""Which parameters and buffers are live, and what they are compared on.

Enters: patterns, good and bad, and models that read their parameters in unusual ways. Leaves: proof that a wrong
pattern is explained, and that a value which export would make a constant is found.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.live_parameters import (
    find_live_parameters,
    live_values_in_place,
    other_values,
    saved_live_values,
)
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.live_parameter_data import LiveParameter


class Net(nn.Module):
    """A scale, a flag, a counter, and a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("steps", torch.tensor([3]))
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.tied = self.weight
        self.flag: torch.Tensor
        self.steps: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.flag, x @ self.weight * self.scale, x) + self.steps


def capture(model: nn.Module, *patterns: str, **options: Any) -> CapturedCall:
    return capture_call(
        model, torch.randn(2, 3), live_parameters=find_live_parameters(model, list(patterns)), **options
    )


def test_patterns_name_parameters_and_buffers_in_the_models_order() -> None:
    """Of tied parameters, which are one tensor, the first is taken."""
    assert find_live_parameters(Net(), ["s*", "*weight", "tied"]) == (
        LiveParameter("scale", "parameter"),
        LiveParameter("steps", "buffer"),
        LiveParameter("weight", "parameter"),
    )
    assert find_live_parameters(Net(), []) == ()


class Large(nn.Module):
    """A parameter that no manifest holds, and one of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(3 << 20))
        self.phases = nn.Parameter(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("model", "patterns", "text"),
    [
        (
            Net(),
            ["skale"],
            "live_parameters: got 'skale', which names no parameter or buffer; expected names such as 'scale', ",
        ),
        (nn.ReLU(), ["scale"], "live_parameters: got 'scale'; expected none, since the model has no parameters"),
        (Net(), "scale", "live_parameters: got a str; expected a list of names of parameters and buffers"),
        (Net(), ["scale", 3], "live_parameters: got an int in it; expected a list of names of parameters and buffers"),
        (Large(), ["table"], "live_parameters: got 12.0 MiB of parameters and buffers; expected at most 8 MiB"),
        (Large(), ["phases"], "live parameter 'phases': got dtype complex64; expected a dense tensor of real numbers"),
    ],
    ids=["misspelt", "no-parameters", "no-list", "no-string", "too-large", "complex"],
)
def test_pattern_that_can_not_be_followed_is_refused(model: nn.Module, patterns: Any, text: str) -> None:
    """The error says what there is instead."""
    with pytest.raises(t2e.InputError) as caught:
        find_live_parameters(model, patterns)
    assert str(caught.value).startswith(text)


def test_fix_of_a_misspelt_pattern_names_the_one_that_was_meant() -> None:
    """The nearest name is asked for."""
    with pytest.raises(t2e.InputError) as caught:
        find_live_parameters(Net(), ["skale"])
    assert caught.value.fix == "did you mean 'scale'?"


def test_values_are_put_back_after_the_body() -> None:
    """Also after an error; no version moves, so that a backward pass which waits is not disturbed."""
    model = Net()
    live = find_live_parameters(model, ["scale"])
    version = model.scale._version
    seen: list[float] = []

    def fail() -> None:
        with live_values_in_place(model, live, [torch.tensor(5.0)]):
            seen.append(model.scale.item())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (seen, model.scale.item(), model.scale._version) == ([5.0], 2.0, version)


def test_other_values_are_plausible() -> None:
    """Positive stays positive, zero does not stay, a flag turns, and integers keep their meaning."""
    values = [torch.full((64,), 3.0), torch.zeros(2), torch.tensor(True), torch.tensor([3]), torch.empty(0)]
    floats, zeros, flag, integers, none = other_values(values, torch.Generator().manual_seed(0))
    assert bool((floats >= 1.5).all())
    assert bool((floats <= 4.5).all())
    assert not torch.equal(floats, values[0])
    assert bool((zeros > 0).all())
    assert not flag
    assert torch.equal(integers, values[3])
    assert none.numel() == 0


@pytest.mark.parametrize("examples", [None, (torch.randn(2, 3),)])
def test_one_case_has_other_values(examples: Any) -> None:
    """The reference answers it with them, with examples or without, and what has one value only is named."""
    model = Net()
    with undisturbed(model):
        captured = capture(model, "scale", "flag", "steps", examples=examples)
        cases, notes = make_parity_cases(captured)
    *others, live = cases
    assert all(torch.equal(case.inputs[1], model.scale) for case in others)
    x, scale, flag, _ = live.inputs
    assert (live.name, bool(flag)) == ("live", False)
    assert float(scale) not in (0.0, 2.0)
    torch.testing.assert_close(live.outputs["output"], x + 3)
    assert list(notes) == ["live parameter 'steps' was compared at its present value alone"]


class Counting(Net):
    """Counts its calls in a buffer that is to be live."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        return x + self.steps


class Remembering(nn.Module):
    """Reads a list that was made before, and so a parameter that no export replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.scales = [self.scale]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scales[0]


class ReadingTwice(Remembering):
    """Reads the parameter by its name as well, so that only a comparison finds the constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scales[0] + self.scale


def test_model_that_writes_into_its_live_parameter_is_refused() -> None:
    """An engine would forget the new value."""
    model = Counting()
    with undisturbed(model), pytest.raises(t2e.ExportError) as caught:
        capture(model, "steps")
    assert "a forward that writes into its live parameter 'steps'" in str(caught.value)


def test_value_that_becomes_a_constant_is_refused() -> None:
    """torch.export replaces attributes; a copy of an attribute stays what it was."""
    with pytest.raises(t2e.ExportError) as caught:
        t2e.export(Remembering(), torch.randn(2, 3), live_parameters=["scale"])
    assert str(caught.value) == (
        "live parameter 'scale': got a forward that does not read it, or reads a copy of it that was made before; "
        "expected a parameter or buffer that forward reads by its name; leave it out of live_parameters, or read "
        "self's attribute in forward"
    )


def test_value_that_becomes_a_constant_in_one_place_fails_parity() -> None:
    """The case with other values shows it."""
    model = ReadingTwice()
    with pytest.raises(t2e.ParityError) as caught:
        t2e.deploy(model, torch.randn(2, 3), live_parameters=["scale"], runtime="onnxruntime")
    assert caught.value.report is not None
    assert {row.case for row in caught.value.report.failures} == {"live"}


def test_exported_model_has_live_parameters_and_is_checked_with_them() -> None:
    """export() takes the patterns, and check() finds the live ones itself."""
    model = Net()
    artifact = t2e.export(model, torch.randn(2, 3), live_parameters=["scale", "weight"])
    assert [spec.name for spec in artifact.signature.inputs] == ["x", "scale", "weight"]
    assert torch.equal(saved_live_values(artifact)[1], model.weight)
    assert t2e.check(model, artifact, torch.randn(2, 3)).passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_follows_live_parameters_in_their_own_dtype(precision: str) -> None:
    """The engine computes in the low precision, its live input stays float32, and a change of it is followed."""
    torch.manual_seed(0)
    model = Scaled().eval()
    sample, fresh = torch.randn(2, 8, 16)
    module = t2e.deploy(
        model,
        sample,
        live_parameters=["scale"],
        precision=precision,
        runtime="onnxruntime",
    )
    assert module.precision == precision
    assert {spec.name: spec.dtype for spec in module.signature.inputs} == {"x": "float32", "scale": "float32"}
    with torch.no_grad():
        for value in (2.0, -0.25):
            module.get_parameter("scale").fill_(value)  # shared with the model
            wanted = model(fresh)
            assert float(model.scale) == value
            assert (module(fresh) - wanted).norm() < 0.01 * wanted.norm()


class Scaled(nn.Module):
    """Two layers, and a scale between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu() * self.scale)


def test_low_inputs_are_refused_beside_live_parameters() -> None:
    """Their dtypes would not be the model's."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.export(Net(), torch.randn(2, 3), live_parameters=["scale"], precision=t2e.Precision("fp16", low_io=True))
    assert str(caught.value) == (
        "Precision.low_io: got True with live_parameters; expected one of them, since live parameters keep the model's "
        "dtypes; leave low_io out"
    )


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_precisions_are_refused_beside_live_parameters(precision: str) -> None:
    """Ranges are calibrated with the values of now; a larger scale would be cut off without an error."""
    sample = torch.randn(8, 16)
    with pytest.raises(t2e.InputError) as caught:
        t2e.export(Scaled(), sample, live_parameters=["scale"], precision=precision, calibration=[sample])
    assert str(caught.value) == (
        f"precision: got '{precision}' with live_parameters; expected a precision without calibrated ranges, which "
        "hold for the live parameters' present values alone; use precision='fp16', or leave live_parameters out and "
        "replace new weights with refit()"
    )


@pytest.mark.parametrize("fallback", [True, "faster"])
def test_fallback_refuses_live_parameters(fallback: Any) -> None:
    """A part of a model has no parameters of its own."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(Net(), torch.randn(2, 3), live_parameters=["scale"], fallback=fallback, runtime="onnxruntime")
    assert str(caught.value) == (
        "live_parameters: got ['scale'] with fallback; expected one of them, since parts of a model have no parameters "
        "of their own; leave fallback out, or replace new weights with refit() and config=BuildConfig(refittable=True)"
    )
