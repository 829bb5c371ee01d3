"""`torch2engine.capture.rounding_sensitivity`: how far rounding moves a model's own answers, unnoticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import captured
from torch2engine.capture.host_trial import HostTrial
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.rounding_sensitivity import with_sensitivity
from torch2engine.capture.undisturbed import undisturbed


def measured(model: nn.Module, sample: Any, *precisions: str) -> list[ParityCase]:
    call = captured(model, sample)
    with undisturbed(call.reference.model):
        cases, _ = make_parity_cases(call)
        return with_sensitivity(call, cases, precisions)


def relative(case: ParityCase, precision: str) -> float:
    """The movement of the only output, beside its size."""
    ((name, moved),) = case.sensitivity[precision].items()
    return float(moved.norm() / case.outputs[name].norm())


class Amplifier(nn.Module):
    """The difference of two large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.plus = nn.Parameter(torch.linspace(100.1, 110.3, 64))
        self.minus = nn.Parameter(torch.linspace(99.2, 109.7, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.plus - x * self.minus


@pytest.mark.parametrize(("precision", "unit"), [("fp32", 2**-24), ("tf32", 2**-11), ("bf16", 2**-8)])
def test_sensitivity_of_a_stable_model_is_a_few_units(precision: str, unit: float) -> None:
    """A linear layer moves by about the unit by which inputs and weights move."""
    torch.manual_seed(0)
    for case in measured(nn.Linear(64, 64), torch.randn(8, 64), precision):
        assert 0.3 * unit < relative(case, precision) < 6 * unit


def test_sensitivity_of_an_amplifying_model_is_large() -> None:
    """What cancels shows: the answer moves by a hundred times more than the input."""
    case = measured(Amplifier(), torch.rand(8, 64), "fp32")[0]
    assert relative(case, "fp32") > 50 * 2**-24


def test_cases_with_the_same_inputs_are_measured_once() -> None:
    """As profiles have them that share a size: all of them have what was found."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    call = captured(model, torch.randn(8, 64))
    calls: list[int] = []
    with undisturbed(model):
        cases, _ = make_parity_cases(call)
        twice = [*cases, *(replace(case, name=f"again {case.name}") for case in cases)]

        def count(module: nn.Module, args: object) -> None:
            calls.append(1)

        hook = model.register_forward_pre_hook(count)
        found = with_sensitivity(call, twice, ("fp32",))
        hook.remove()
    assert len(calls) == 3 * len(cases)  # three perturbations
    assert [case.name for case in found] == [case.name for case in twice]
    for first, again in zip(found, found[len(cases) :], strict=False):
        assert first.sensitivity["fp32"]
        assert again.sensitivity == first.sensitivity


def test_weights_of_every_kind_of_module_move() -> None:
    """With an input of zeros, all that moves is weights: also those that a recurrent module keeps in a list."""
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    case = measured(Recurrent(), torch.zeros(3, 2, 4), "fp32")[0]
    assert relative(case, "fp32") > 0


def test_model_is_left_alone() -> None:
    """Parameters and buffers keep identity, values and version counters."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    tensors = [*model.parameters(), *model.buffers()]
    before = [(id(tensor), tensor.clone(), tensor._version) for tensor in tensors]
    measured(model, torch.randn(4, 8), "fp32", "fp16")
    after = [*model.parameters(), *model.buffers()]
    for (identity, values, version), tensor in zip(before, after, strict=True):
        assert (id(tensor), tensor._version) == (identity, version)
        assert torch.equal(tensor, values)


class Lookup(nn.Module):
    """Indexes made of floats: one beyond the input's range would be out of range."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.table[(x * 8).long()] * mask + ids[:, None]


def test_inputs_stay_in_their_range_and_whole_numbers_as_they_are() -> None:
    """Masks and integers don't move, and no float leaves the range of its tensor."""
    seen: list[tuple[torch.Tensor, ...]] = []

    class Watched(Lookup):
        def forward(self, x: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            seen.append((x.clone(), mask.clone(), ids.clone()))
            return super().forward(x, mask, ids)

    model = Watched()
    x = torch.tensor([0.1, 0.5, 0.7, 1 - 2**-24])
    call = captured(model, (x, torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.arange(4)))
    with undisturbed(model):
        cases, _ = make_parity_cases(call)
        seen.clear()
        with_sensitivity(call, cases, ("bf16",))
    exact = cases[0].inputs
    for moved, mask, ids in seen[:: len(cases)]:
        assert float(exact[0].min()) <= float(moved.min()) <= float(moved.max()) <= float(exact[0].max())
        assert not torch.equal(moved, exact[0])
        assert torch.equal(mask, exact[1])
        assert torch.equal(ids, exact[2])


def test_sensitivity_is_missing_where_the_model_refuses_other_weights() -> None:
    """A model that insists on its own weights is judged by its tolerance alone."""

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 0.3) + torch.arange(3) / 7)
            self.total = float(self.weight.detach().sum())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(self.weight.detach().sum()) != self.total:
                raise ValueError("other weights")
            return x * self.weight

    model = Stubborn()
    call = captured(model, torch.randn(2, 3))
    with undisturbed(model):
        cases, _ = make_parity_cases(call)
        found = with_sensitivity(call, cases, ("bf16",))
    assert [dict(case.sensitivity) for case in found] == [{}] * len(cases)


def test_only_floating_outputs_move() -> None:
    """Integers have no last place."""

    class Labelled(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": x * 0.3, "label": x.argmax(-1)}

    assert list(measured(Labelled(), torch.randn(3, 5), "fp32")[0].sensitivity["fp32"]) == ["scores"]


class Scaled(nn.Module):
    """Scales its input; its copies refuse any other scale, and it remembers whether it met one itself."""

    def __init__(self, is_copy: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.1, 2.3, 3.7]))
        self.is_copy = is_copy
        self.met: list[bool] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Scaled:
        return Scaled(is_copy=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_moved = not torch.equal(self.scale, torch.tensor([1.1, 2.3, 3.7]))
        self.met.append(is_moved)
        if self.is_copy and is_moved:
            raise ValueError("out of range")
        return x * self.scale


@pytest.mark.parametrize("follows_floats", [True, False])
def test_rounded_weights_run_on_the_cpu_first_where_floats_are_indices(follows_floats: bool) -> None:
    """Where the CPU refuses them the model never meets them, and its sensitivity stays unknown."""
    model = Scaled()
    call = captured(model, torch.rand(3))
    call = replace(call, trial=HostTrial(call.reference, call.sample, follows_floats=follows_floats))
    met: list[bool] = []
    model.met = met
    with undisturbed(model):
        cases, _ = make_parity_cases(call)
        found = with_sensitivity(call, cases, ("fp32",))
        assert any(met) is not follows_floats
    assert all(bool(case.sensitivity) is not follows_floats for case in found)


def test_model_that_cannot_be_tried_has_no_sensitivity_where_floats_are_indices() -> None:
    """Nothing but the answers is known of it."""

    class Single(Scaled):
        def __deepcopy__(self, memo: dict[int, Any]) -> Scaled:
            raise RuntimeError("there is one of me")

    call = captured(Single(), torch.rand(3))
    call = replace(call, trial=HostTrial(call.reference, call.sample))
    with undisturbed(call.reference.model):
        cases, _ = make_parity_cases(call)
        assert with_sensitivity(call, cases, ("fp32",)) == cases
