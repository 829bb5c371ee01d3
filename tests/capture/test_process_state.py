"""The process's switches for arithmetic: what they are inside, and that they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.float32_switches import SWITCHES, TURNS
from tests.support.models import captured, exported
from torch2engine.capture.undisturbed import undisturbed

X = torch.randn(4, 3)


def test_callers_autocast_does_not_leak_in() -> None:
    """A deploy inside autocast gives the float32 model, and autocast goes on afterwards."""
    model = nn.Linear(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        artifact, _ = exported(model, X)
        assert model(X).dtype == torch.bfloat16
    assert artifact.signature.outputs[0].dtype == "float32"
    assert artifact.precision == "fp32"


LOOK = """
import json
from multiprocessing import get_context
from tests.support.float32_switches import TURNS, turn_and_look
with get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # a fresh process for each, since torch remembers
    print(json.dumps(dict(zip(TURNS, pool.map(turn_and_look, TURNS, chunksize=1)))))
"""


@pytest.fixture(scope="module")
def looks(run_python: Callable[[str], Any]) -> dict[str, Any]:
    """What the switches said, for each way of turning them."""
    return run_python(LOOK)


@pytest.mark.parametrize("turn", TURNS)
def test_pitfall_40_shortened_float32_is_off_inside_and_back_afterwards(turn: str, looks: dict[str, Any]) -> None:
    """TF32 and bfloat16 products are off while comparing, whichever of torch's two sets of switches a user turned."""
    before, inside, after = looks[turn]
    assert inside == ["ieee"] * len(SWITCHES)
    assert after == before


def test_pitfall_40_full_float32_is_what_the_cpu_computes() -> None:
    """Under set_float32_matmul_precision("medium") the reference still is float32, as ONNX Runtime is."""
    wide = nn.Linear(256, 256)
    x = torch.randn(64, 256)
    right = x.double() @ wide.weight.detach().double().t() + wide.bias.detach().double()
    torch.set_float32_matmul_precision("medium")
    try:
        settled = captured(wide, x)
        with undisturbed(wide):
            found = settled.reference(settled.sample).leaves[0]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert float((found.double() - right).norm() / right.norm()) < 1e-5


FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p"),
    *("log2", "sin", "sinh", "cosh", "sqrt", "tan", "tanh"),
)


FIRST_CALLS = f"""
import json
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch2engine.capture.process_state import exact_arithmetic

class Log(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            seen.append([function.__name__.partition(".")[0], str(args[0].dtype), args[0].numel()])
        return function(*args, **(kwargs or {{}}))

torch.set_num_threads(2)
seen = []
with Log(), exact_arithmetic():
    pass
x = torch.linspace(0.1, 0.9, 1 << 15)
with exact_arithmetic():
    narrow = {{name: getattr(torch, name)(x) for name in {FUNCTIONS}}}
    wide = {{name: getattr(torch, name)(x.double()) for name in narrow}}
print(json.dumps([seen, {{name: float((narrow[name] - wide[name]).abs().max()) for name in wide}}]))
"""


def test_first_call_of_mkls_functions_is_one_threads(run_python: Callable[[str], Any]) -> None:
    """Else references may be wrong by 1e-4, in one process of six on some CPUs (pytorch/pytorch#188792)."""
    calls, errors = run_python(FIRST_CALLS)
    for name in FUNCTIONS:
        for dtype in ("torch.float32", "torch.float64"):
            assert [size for function, of, size in calls if (function, of) == (name, dtype)] == [1], name
    assert all(error < 1e-6 for error in errors.values()), errors
