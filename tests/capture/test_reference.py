"""The module as the reference: reached behind every wrapper, called as the user calls it, its errors at his line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Arguments, Block, Box, Function, Pair, captured, line_of
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.reference import Reference, flatten_result, outputs_by_name
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import ExportError
from torch2engine.core.pytree import Inputs, flatten

X = torch.arange(12.0).reshape(4, 3)


class Failing(nn.Module):
    """Fails in code that its forward calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return stretch(x)


def stretch(x: torch.Tensor) -> torch.Tensor:
    """Fails inside torch."""
    return x.reshape(7, -1)  # no 7 in 12


# calling it


@pytest.mark.parametrize(
    "sample",
    [
        X,
        (X, X),
        (X, None, X, X),
        {"x": X, "shift": X},
        {"extra": X, "shift": X, "x": X},
        Inputs(X, X, X, scale=3.0, shift=X, extra=X),
        {"x": X, "mask": X, "scale": 2},
    ],
    ids=["one", "two", "variadic", "skipped", "any order", "everything", "constant"],
)
def test_reference_answers_like_the_model(sample: Any) -> None:
    """The flat leaves reach the arguments that they were taken from."""
    model = Arguments()
    given = sample if isinstance(sample, Inputs) else None
    args = (
        given.args if given else sample if isinstance(sample, tuple) else () if isinstance(sample, dict) else (sample,)
    )
    kwargs = given.kwargs if given else sample if isinstance(sample, dict) else {}
    settled = captured(model, sample)
    assert torch.equal(settled.reference(settled.sample).leaves[0], model(*args, **kwargs))


def test_argument_after_a_skipped_one_is_passed_by_name() -> None:
    """A tensor given by keyword does not slip into the place of an optional that was left out."""

    class Optional(nn.Module):
        def forward(self, x: Any, mask: Any = None, bias: Any = None, /, *rest: Any) -> Any:
            return x if bias is None else x - bias

    class Named(nn.Module):
        def forward(self, x: Any, mask: Any = None, bias: Any = None) -> Any:
            return (x if mask is None else x * mask) - bias

    settled = captured(Named(), {"bias": X + 1, "x": X})
    assert torch.equal(settled.reference(settled.sample).leaves[0], torch.full((4, 3), -1.0))
    settled = captured(Optional(), (X, None, X))
    assert torch.equal(settled.reference(settled.sample).leaves[0], torch.zeros(4, 3))


def test_reference_runs_on_clones() -> None:
    """A model that writes into its input does not write into the sample, unless it is run on the leaves themselves."""
    parameters = captured(Function(lambda x, w: x * 2), X).signature.parameters
    reference = Reference(Function(lambda x, w: x.mul_(2)), parameters)
    sample = X.clone()
    assert torch.equal(reference([sample]).leaves[0], X * 2)
    assert torch.equal(sample, X)
    reference.run([sample])
    assert torch.equal(sample, X * 2)


class ReturnsBuffer(nn.Module):
    """Returns the buffer that it has just written, or a view of it."""

    def __init__(self, part: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 3))
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last.copy_(x * 2)
        return self.part(self.last)


@pytest.mark.parametrize(
    "part", [lambda last: last, lambda last: last[1:], lambda last: last.T], ids=["itself", "slice", "transposed"]
)
def test_answer_that_is_a_buffer_survives_the_restoring(part: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The recorded answer is the model's, not what the buffer holds when everything has been put back."""
    model = ReturnsBuffer(part)
    with undisturbed(model):
        settled = capture_call(model, X)
        (case, *_), _ = make_parity_cases(settled)
    assert torch.equal(model.last, torch.zeros(4, 3))
    assert torch.equal(case.outputs["output"], part(case.inputs[0] * 2))


def test_reference_failure_names_the_innermost_user_line() -> None:
    """Not the line of forward, and not torch's: the user's last line before torch."""
    reference = Reference(Failing(), captured(Block(), X).signature.parameters)
    with pytest.raises(ExportError) as error:
        reference([X])
    assert error.value.source == line_of(stretch, "no 7 in 12")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_result_of_another_structure_is_refused() -> None:
    """Structure and Python numbers are fixed in an engine, so they may not follow a shape."""
    tree = flatten((X, 4), "output").tree
    assert torch.equal(outputs_by_name(flatten((X, 4), "output"), tree, ["y"])["y"], X)
    for other in ((X, 5), (X, X), [X, 4], X):
        with pytest.raises(ExportError) as error:
            outputs_by_name(flatten(other, "output"), tree, ["y"])
        assert str(error.value) == (
            "model: got a result with another structure, or other constants, at another size of its "
            "dynamic axes; expected one structure and equal Python numbers for every size; return a "
            "tensor instead of a Python number that follows a shape"
        )


def test_results_are_named_and_detached() -> None:
    """The reference's answers carry no graph."""
    flat = flatten_result({"a": X.requires_grad_() * 2, "b": Pair(X, Box(X))})
    assert flat.names == ["a", "b.left", "b.right.tensor"]
    answers = outputs_by_name(flat, flat.tree, ["p", "q", "r"])
    assert list(answers) == ["p", "q", "r"]
    assert not any(answer.requires_grad for answer in answers.values())
    X.requires_grad_(False)
