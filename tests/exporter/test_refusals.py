"""Why torch.export refuses a model, in the user's words, with a cure that works when followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import ExportError, InputError
from torch2engine.exporter.refusals import explain_refusal


class Of(nn.Module):
    """A module of a function of itself and its input."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.energy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def refusal(model: nn.Module) -> ExportError:
    """How a model is refused."""
    with pytest.raises(ExportError) as error:
        exported(model, torch.rand(3, 4))
    return error.value


def test_errors_of_our_own_come_through() -> None:
    """A typed error raised while torch traces is not wrapped again."""
    own = InputError("x", got="mine")
    assert explain_refusal(own) is own


@pytest.mark.parametrize(
    "message", ["Unsupported input type <class 'transformers.DynamicCache'>", "X is not a known type", "DynamicCache"]
)
def test_caches_have_their_hint(message: str) -> None:
    """torch's words about a Hugging Face cache come with the argument that avoids it."""
    error = explain_refusal(ValueError(message))
    assert str(error) == (
        f'torch.export: got "ValueError: {message}"; expected a model that torch.export can trace; '
        "for a Hugging Face model pass use_cache=False"
    )


def _by_autograd(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model.energy(x).sum(), x)[0]


def _by_func(model: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda y: model.energy(y).sum())(x)


@pytest.mark.parametrize("gradient", [_by_autograd, _by_func])
def test_gradient_in_forward_is_named(gradient: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Forces of an energy need PyTorch; the energy itself can be exported, as the error says."""
    error = refusal(Of(gradient).eval())
    assert error.got == "a gradient that forward computes"
    assert error.source.rpartition(":")[0] == str(Path(__file__))
    exported(Of(lambda model, x: model.energy(x)).eval(), torch.rand(3, 4))


def _asserted(model: Any, x: torch.Tensor) -> torch.Tensor:
    del model
    assert x.max() < 1e3
    return x * 2


def _raised(model: Any, x: torch.Tensor) -> torch.Tensor:
    del model
    if x.isnan().any():
        raise ValueError("NaN")
    return x * 2


def _behind(model: Any, x: torch.Tensor) -> torch.Tensor:
    if not torch.compiler.is_exporting():
        _asserted(model, x)
        _raised(model, x)
    return x * 2


@pytest.mark.parametrize("check", [_asserted, _raised])
def test_check_of_values_has_its_own_cure(check: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """A check is no choice between two results: it has to go, and the condition in the error takes it away."""
    error = refusal(Of(check).eval())
    assert "if not torch.compiler.is_exporting():" in error.fix
    artifact, _ = exported(Of(_behind).eval(), torch.rand(3, 4))
    x = torch.rand(3, 4)
    (found,) = answer(artifact, ParityCase("", (x,), {})).values()
    assert torch.equal(torch.from_numpy(found), x * 2)


def test_branch_between_two_results_has_the_usual_cure(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.where and torch.cond keep both; torch's graph is not printed beside the error."""
    error = refusal(Of(lambda model, x: x * 2 if x.sum() > 0 else x).eval())
    assert capfd.readouterr() == ("", "")
    assert error.fix.startswith("use torch.where for a choice of values")
