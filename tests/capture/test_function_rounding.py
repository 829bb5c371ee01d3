"""`torch2engine.capture.function_rounding`: a sigmoid's tail is no finer than the sigmoid is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torch2engine as t2e
from torch2engine.capture.function_rounding import STEP, FunctionRounding

X = torch.linspace(-40.0, 40.0, 64)
Function = Callable[[torch.Tensor], torch.Tensor]


def moved_by(function: Function) -> torch.Tensor:
    """How far results for X move, in steps."""
    with FunctionRounding(torch.ones_like):
        moved = function(X.double())
    return (moved - function(X.double())) / STEP


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (torch.sigmoid, torch.ones(64)),
        (functional.hardsigmoid, torch.ones(64)),
        (torch.erfc, torch.ones(64)),
        (functional.silu, X.abs()),
        (functional.gelu, X.abs()),
        (functional.mish, X.abs()),
        (functional.hardswish, X.abs()),
        (functional.glu, X[:32].abs()),
        (lambda x: x.clone().sigmoid_(), torch.ones(64)),
        (lambda x: functional.silu(x.clone(), inplace=True), X.abs()),
        (lambda x: torch.sigmoid(x, out=torch.empty_like(x)), torch.ones(64)),
        (torch.tanh, torch.zeros(64)),
        (torch.exp, torch.zeros(64)),
    ],
)
def test_result_moves_by_a_share_of_the_functions_own_number(function: Function, number: torch.Tensor) -> None:
    """That is 1 for a sigmoid, and the argument for what is multiplied by one; others don't move."""
    torch.testing.assert_close(moved_by(function), number.double(), rtol=1e-6, atol=1e-6)


def test_integers_and_complex_numbers_are_answered_as_before() -> None:
    """A sigmoid of integers is a float32, which moves; one of complex numbers stays as it is."""
    whole, pair = torch.tensor([-30, 0]), torch.tensor([1 + 2j])
    with FunctionRounding(torch.ones_like):
        answers = torch.sigmoid(whole), torch.sigmoid(pair)
    torch.testing.assert_close(answers[0], torch.sigmoid(whole) + STEP)
    assert torch.equal(answers[1], torch.sigmoid(pair))


class Scores(nn.Module):
    """A head whose scores are mostly saturated, as behind a network that is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.head(x) * 40
        return torch.sigmoid(scores), functional.silu(scores)


def test_saturated_scores_become_a_module_on_onnx_runtime() -> None:
    """ONNX Runtime's sigmoid gives 0 below -18, and is off by half a unit of 1 above."""
    torch.manual_seed(0)
    model, x = Scores().eval(), torch.randn(8, 16)
    module = t2e.deploy(model, x, {"x": {0: t2e.Axis("batch", 1, 8, 16)}}, runtime="onnxruntime", cache=False)
    expected, found = model(x)[0], module(x)[0]
    assert bool(((found == 0) & (expected > 0)).any())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)


def test_torch_compile_works_below_and_afterwards() -> None:
    """Below another mode torch.compile skips a function, remembers that, and never compiles it again."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    double = torch.compile(lambda x: x * 2, backend=keep, fullgraph=True)
    with FunctionRounding(torch.ones_like):
        assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert torch.equal(double(torch.ones(4, 4)), torch.full((4, 4), 2.0))
    assert len(graphs) == 2
