"""Parameters and gradients that a call writes to: put back bit for bit, and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.models import captured
from torch2engine.capture.parameter_writes import parameter_writes_undone
from torch2engine.core.errors import ExportError

X = torch.arange(12.0).reshape(4, 3)


class Writing(nn.Module):
    """Writes into `w` in some way, and only reads `v`."""

    def __init__(self, write: Callable[[Writing], object]) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor([3.0, -2.0, 1.0])), nn.Parameter(torch.ones(3))
        self.write = write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.write(self)
        return x * self.w + self.v


def through_out(model: Writing) -> None:
    """As an operator's `out=`."""
    torch.add(model.v.data, 1.0, out=model.w.data)


def through_list(model: Writing) -> None:
    """As one of a list of tensors."""
    torch._foreach_mul_([model.w.data], 2.0)


WRITES: dict[str, Callable[[Writing], object]] = {
    "in place": lambda model: model.w.add_(1),
    "through .data": lambda model: model.w.data.mul_(0.5),
    "through a view of .data": lambda model: model.w.data[1:].zero_(),
    "max-norm by assignment": lambda model: setattr(model.w, "data", model.w.data.clamp(max=1)),
    "other memory, then in place": lambda model: setattr(model.w, "data", model.w.data.clone().add_(1)),
    "by index": lambda model: model.w.data.__setitem__(0, 7.0),
    "as out=": through_out,
    "in a list": through_list,
}


@pytest.mark.parametrize("how", WRITES)
def test_parameter_that_forward_writes_is_put_back_and_named(how: str) -> None:
    """The values, the memory and the version are as before, and the error names the parameter."""
    model = Writing(WRITES[how])
    memory, version = model.w.data_ptr(), model.w._version
    with pytest.raises(ExportError) as caught:
        captured(model, X)
    assert str(caught.value) == (
        "model: got a forward that writes into its own parameters (w), which are put back; expected "
        "a forward that only reads them; "
        "move such updates out of forward"
    )
    assert model.w.tolist() == [3.0, -2.0, 1.0]
    assert (model.w.data_ptr(), model.w._version) == (memory, version)


def test_tied_parameter_is_put_back_under_every_name() -> None:
    """Two parameters in one memory are both put back by their own views of it."""
    model = Writing(lambda model: model.w.data.zero_())
    model.v = nn.Parameter(model.w.data[1:2])
    with torch.no_grad(), parameter_writes_undone(model) as writes:
        model(X)
    assert (model.w.tolist(), model.v.tolist()) == ([3.0, -2.0, 1.0], [-2.0])
    assert writes.parameters == ["w", "v"]


def test_writes_before_a_failure_are_put_back() -> None:
    """A call that fails half-way leaves no half-written weights."""

    def fail(model: Writing) -> None:
        model.w.data.fill_(9)
        raise RuntimeError("half-way")

    model = Writing(fail)
    with pytest.raises(ExportError, match="half-way"):
        captured(model, X)
    assert model.w.tolist() == [3.0, -2.0, 1.0]


def test_backward_pass_that_saw_the_old_values_still_runs() -> None:
    """A pending backward pass finds the version that it saved."""
    model = Writing(lambda model: None)
    loss = (model(X) * model.w).sum()
    model.write = WRITES["in place"]
    with torch.no_grad(), parameter_writes_undone(model):
        model(X)
    loss.backward()
    assert model.w.grad is not None


def test_gradient_that_forward_adds_to_is_put_back_and_named() -> None:
    """What earlier passes accumulated is there again."""

    class Accumulating(Writing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                (x * self.w).sum().backward()
            return x * self.w

    model = Accumulating(lambda model: None)
    model(X)
    assert model.w.grad is not None
    before = model.w.grad.clone()
    with pytest.raises(ExportError, match="a forward that adds to the gradients of w, which are put back"):
        captured(model, X)
    assert torch.equal(model.w.grad, before)


def test_write_beside_a_branch_is_seen() -> None:
    """A higher-order operator such as torch.cond goes through, and hides no write."""

    def write(model: Writing) -> object:
        return torch.cond(model.v.sum() > 0, torch.sin, torch.cos, (model.w.data.mul_(2),))

    model = Writing(write)
    with torch.no_grad(), parameter_writes_undone(model) as writes:
        model(X)
    assert writes.parameters == ["w"]
    assert model.w.tolist() == [3.0, -2.0, 1.0]


def test_call_that_only_reads_copies_and_names_nothing() -> None:
    """Reading, views and writes into other tensors are no writes."""
    model = Writing(lambda model: model.w.data.clone().add_(1) + model.w.view(3, 1).t())
    with torch.no_grad(), parameter_writes_undone(model) as writes:
        model(X)
    assert (writes.parameters, writes.gradients) == ([], [])
