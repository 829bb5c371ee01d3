"""The user's module is reached behind every wrapper, and refused where no later stage can take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Block, TwoInputs, exported
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.errors import InputError
from torch2engine.deployed.onnxruntime.ort_module import ORTModule

X = torch.arange(12.0).reshape(4, 3)


class OwnParallel(nn.DataParallel):
    """A user's own kind, whose forward may do more than the inner module's."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it loads its compiler
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        torch.compile,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.DataParallel(torch.compile(model)),
    ],
    ids=["bare", "compiled", "parallel", "compiled parallel", "parallel compiled"],
)
def test_module_is_reached_behind_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """torch.compile and DataParallel, also one in the other, hide nothing."""
    model = Block()
    assert unwrap(wrap(model)) is model


def test_users_own_wrapper_is_left_on() -> None:
    """A subclass of DataParallel is the user's model, not a wrapper to be taken off."""
    model = OwnParallel(Block())
    assert unwrap(model) is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: torch.relu,
            "model: got a builtin_function_or_method; expected a torch.nn.Module; wrap a function in "
            "a module whose forward calls it",
        ),
        (
            lambda: None,
            ("model: got None; expected a torch.nn.Module; pass the module whose forward is to be deployed"),
        ),
        (
            lambda: Block,
            ("model: got the class Block; expected a torch.nn.Module; make one first, e.g. Block(...)"),
        ),
        (
            lambda: torch.jit.script(nn.Linear(3, 3)),
            "model: got a RecursiveScriptModule; expected the Python module that it was made from; "
            "pass the module as it was before torch.jit.script or torch.jit.trace",
        ),
        (
            lambda: torch.jit.trace(nn.Linear(3, 3), X),
            "model: got a TopLevelTracedModule; expected the Python module that it was made from; "
            "pass the module as it was before torch.jit.script or torch.jit.trace",
        ),
        (
            lambda: nn.Sequential(nn.Sequential(torch.jit.script(nn.Linear(3, 3)))),
            "model: got a RecursiveScriptModule as its submodule '0.0'; expected the Python module "
            "that it was made from; pass the module as it was before torch.jit.script or "
            "torch.jit.trace",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            (
                "model: got a lazy parameter '0.weight' without a shape; expected parameters with "
                "values; call the model once first"
            ),
        ),
        (
            lambda: torch.inference_mode()(lambda: nn.Linear(3, 3))(),
            "model: got a parameter 'weight' that was made in inference mode and requires grad; "
            "expected parameters that torch.export can take; make or load the model outside torch.inference_mode()",
        ),
        (
            lambda: ORTModule(exported(TwoInputs(), (X, X))[0]),
            "model: got an ORTModule; expected a PyTorch module; pass what it was deployed from",
        ),
    ],
    ids=["function", "None", "class", "script", "trace", "script inside", "lazy", "inference", "deployed"],
)
def test_model_that_can_not_be_deployed_is_refused(make: Callable[[], Any], text: str) -> None:
    """What is no live, traceable nn.Module is refused with what to pass instead."""
    model = make()
    with pytest.raises(InputError) as error:
        unwrap(model)
    assert str(error.value) == text


@pytest.mark.filterwarnings("ignore")  # torch.ao's own deprecations, of several classes
def test_packed_weights_are_refused_where_they_are() -> None:
    """What quantize_dynamic made is named; the cure is to deploy what it was made from."""
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(InputError) as error:
        unwrap(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}))
    assert error.value.got == "a Linear of torch.ao as its submodule '1.0', with weights packed for the CPU"
    assert error.value.fix == (
        "deploy the model as it was before quantize_dynamic or convert, with precision='int8' if you like"
    )
    assert unwrap(model) is model
