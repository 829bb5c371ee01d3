"""The module as the reference: reached behind every wrapper, called as the user calls it, its errors at his line."""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import Arguments, Block, Box, Function, Pair, TwoInputs, captured, exported, line_of
from torch2engine.capture.captured_call import resized
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.reference import Reference, flatten_result, outputs_by_name
from torch2engine.capture.signature import capture_call
from torch2engine.capture.source_lines import innermost_user_frame, user_source
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.pytree import Inputs, flatten
from torch2engine.modules.onnxruntime.module import ORTModule

X = torch.arange(12.0).reshape(4, 3)


class OwnParallel(nn.DataParallel):
    """A user's own kind, whose forward may do more than the inner module's."""


class Failing(nn.Module):
    """Fails in code that its forward calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return stretch(x)


def stretch(x: torch.Tensor) -> torch.Tensor:
    """Fails inside torch."""
    return x.reshape(7, -1)  # no 7 in 12


# unwrap


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
            "model: a builtin_function_or_method, a torch.nn.Module; wrap a function in a module whose forward calls "
            "it",
        ),
        (lambda: None, "model: a NoneType, a torch.nn.Module; wrap a function in a module whose forward calls it"),
        (lambda: Block, "model: a type, a torch.nn.Module; wrap a function in a module whose forward calls it"),
        (
            lambda: torch.jit.script(nn.Linear(3, 3)),
            "model: a RecursiveScriptModule, the Python module that it was made from; pass the module as it was before "
            "torch.jit.script or torch.jit.trace",
        ),
        (
            lambda: torch.jit.trace(nn.Linear(3, 3), X),
            "model: a TopLevelTracedModule, the Python module that it was made from; pass the module as it was before "
            "torch.jit.script or torch.jit.trace",
        ),
        (
            lambda: nn.Sequential(nn.Sequential(torch.jit.script(nn.Linear(3, 3)))),
            "model: its submodule '0.0' is a RecursiveScriptModule, the Python module that it was made from; pass the "
            "module as it was before torch.jit.script or torch.jit.trace",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            "model: its lazy parameter '0.weight' has no shape yet; call the model once first",
        ),
        (
            lambda: torch.inference_mode()(lambda: nn.Linear(3, 3))(),
            "model: its parameter 'weight' was made in inference mode and requires grad, which torch.export can't "
            "take; make or load the model outside torch.inference_mode()",
        ),
        (
            lambda: ORTModule(exported(TwoInputs(), (X, X))[0]),
            "model: a ORTModule; it is deployed already; pass the PyTorch module",
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
    settled = captured(Function(lambda x, w: x.mul_(2)), X.clone())
    before = settled.sample[0].clone()
    assert torch.equal(settled.reference(settled.sample).leaves[0], before * 2)
    assert torch.equal(settled.sample[0], before)
    settled.reference.run(settled.sample)
    assert torch.equal(settled.sample[0], before * 2)


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
            "model: its result has another structure, or other constants, at another size of its dynamic axes, one "
            "structure and equal Python numbers for every size; return a tensor instead of a Python number that "
            "follows a shape"
        )


def test_results_are_named_and_detached() -> None:
    """The reference's answers carry no graph."""
    flat = flatten_result({"a": X.requires_grad_() * 2, "b": Pair(X, Box(X))})
    assert flat.names == ["a", "b.left", "b.right.tensor"]
    answers = outputs_by_name(flat, flat.tree, ["p", "q", "r"])
    assert list(answers) == ["p", "q", "r"]
    assert not any(answer.requires_grad for answer in answers.values())
    X.requires_grad_(False)


# the user's line


def test_user_source_is_the_innermost_user_frame() -> None:
    """It is the last line before torch's; nothing is told where there is nothing."""
    with pytest.raises(RuntimeError) as error:
        stretch(X)
    assert user_source(error.value) == line_of(stretch, "no 7 in 12")
    assert user_source(RuntimeError("never raised")) == ""


@pytest.mark.parametrize(
    "foreign",
    [
        torch.nn.functional.__file__,
        inspect.getsourcefile(Reference),
        str(Path(sysconfig.get_paths()["stdlib"]) / "contextlib.py"),
        "torch/fx/passes/runtime_assert.py",
        "<eval_with_key>.3",
        "<string>",
    ],
    ids=["torch", "torch2engine", "stdlib", "made up by torch", "generated", "string"],
)
def test_machinery_is_no_users_line(foreign: str) -> None:
    """Frames of torch, torch2engine, the standard library and generated code are passed over."""
    assert innermost_user_frame([("model.py", 7), (foreign, 3)]) == "model.py:7"
    assert innermost_user_frame([(foreign, 3)]) == ""


def test_model_library_is_a_users_line() -> None:
    """The line in a library of models is the one that tells what to change."""
    library = str(Path(torch.__file__).parents[1] / "some_models" / "vit.py")
    assert innermost_user_frame([("train.py", 7), (library, 30), (torch.__file__, 3)]) == f"{library}:30"


# sizes


def test_resized_cuts_and_repeats() -> None:
    """Every dimension is cut or repeated in order, into fresh contiguous memory."""
    assert resized(X, (2, 3)).tolist() == X[:2].tolist()
    assert resized(X, (9, 3)).tolist() == torch.cat([X, X, X[:1]]).tolist()
    assert resized(X, (1, 4)).tolist() == [[0.0, 1.0, 2.0, 0.0]]
    same = resized(X.t(), (3, 4))
    assert same.is_contiguous()
    assert torch.equal(same, X.t())
    same.zero_()
    assert X[3, 2] == 11
    assert resized(torch.tensor(3.0), ()).shape == ()
    assert resized(torch.tensor([[True]]), (2, 2)).all()
