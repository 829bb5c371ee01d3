"""Real inputs instead of invented ones: read once, checked by index, and compared on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import captured
from torch2engine.capture.examples import read_examples, with_examples
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import DtypeError, ExportError, InputError, ShapeError
from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import Axis

N = Axis("n", 2, 4, 8)


class Last(nn.Module):
    """The entry of each row at its length, which must be no more than the row has; remembers the sizes of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.sizes.add(x.shape[1])
        return x[torch.arange(x.shape[0]), lengths - 1]


def call(size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, size, 3), torch.tensor([length, 1])


def cases_of(
    examples: Any, sample: Any = None, axis: Axis | str = N, profiles: Any = None
) -> tuple[dict[str, ParityCase], tuple[str, ...]]:
    """The cases by name, and the notes."""
    model = Last()
    settled = captured(model, call(4, 3) if sample is None else sample, {"x": {1: axis}}, profiles)
    settled = with_examples(settled, read_examples(examples))
    with undisturbed(model):
        found, notes = make_parity_cases(settled)
    return {case.name: case for case in found}, notes


def test_examples_take_the_place_of_invented_cases() -> None:
    """The sample and the examples are compared on, bit for bit, and nothing else reaches the model."""
    given = [call(2, 2), call(8, 8)]
    found, notes = cases_of(given)
    assert list(found) == ["sample", "example 0", "example 1"]
    assert notes == ()
    for example, case in zip(given, list(found.values())[1:], strict=True):
        assert all(map(torch.equal, case.inputs, example))
        assert torch.equal(case.outputs["output"], Last()(*example))
        assert case.guessed == ()


def test_examples_may_be_of_any_form_of_a_sample() -> None:
    """Tuples, Mappings and Inputs; from an iterator, which is read once; in dtypes that lose nothing."""
    x, lengths = call(2, 2)
    forms = ((x, lengths), {"x": x, "lengths": lengths}, Inputs(x, lengths=lengths.int()), (x.half(), lengths))
    found, _ = cases_of(iter(forms))
    assert len(found) == 5
    for case in found.values():
        assert [leaf.dtype for leaf in case.inputs] == [torch.float32, torch.int64]


def test_case_of_an_example_is_a_copy() -> None:
    """The caller may write into the example afterwards."""
    example = call(2, 2)
    found, _ = cases_of([example])
    example[0].zero_()
    assert float(found["example 0"].inputs[0].abs().min()) > 0


@pytest.mark.parametrize(
    ("examples", "profiles", "notes"),
    [
        ([call(4, 1)], None, ("no example in the profile has n = 2 or n = 8, so nothing was compared there",)),
        ([call(8, 1)], None, ("no example in the profile has n = 2, so nothing was compared there",)),
        (
            [call(2, 1)],
            [{"n": (2, 2, 4)}, {"n": (5, 6, 8)}],
            ("no example lies in profile 1 (n 5..8 (opt 6)), so nothing was compared there",),
        ),
        (
            [call(2, 1), call(5, 1)],
            [{"n": (2, 2, 4)}, {"n": (5, 6, 8)}],
            ("no example in profile 1 has n = 8, so nothing was compared there",),
        ),
    ],
)
def test_ends_of_profiles_that_no_example_reaches_are_told(
    examples: Sequence[Any], profiles: Any, notes: tuple[str, ...]
) -> None:
    """The caller knows which sizes nothing was compared at."""
    assert cases_of(examples, profiles=profiles)[1] == notes


@pytest.mark.parametrize(
    ("examples", "kind", "text"),
    [
        (
            torch.ones(2),
            InputError,
            (
                "examples: got a Tensor; expected an iterable of inputs, each in the form of "
                "sample_input; write examples=[x] for a "
                "single input x"
            ),
        ),
        (
            {"x": torch.ones(2)},
            InputError,
            (
                "examples: got a dict; expected an iterable of inputs, each in the form of sample_input; "
                "write examples=[x] for a "
                "single input x"
            ),
        ),
        (3, InputError, "examples: got an int; expected an iterable of inputs"),
        (
            iter(()),
            InputError,
            (
                "examples: got no input; expected at least one, though an iterator that was read before "
                "has none left; pass a list, or leave "
                "examples out"
            ),
        ),
        ([call(2, 2), 3], InputError, "examples[1]: got an int; expected a Tensor, a tuple or list"),
        ([call(2, 2)[0]], InputError, "examples[0], argument 'lengths': got no value"),
        ([(torch.ones(2, 2, 3), 1)], InputError, "examples[0], input 'lengths': got an int; expected a torch.Tensor"),
        (
            [(torch.ones(2, 2, 3).double(), torch.ones(2).long())],
            DtypeError,
            "examples[0], input 'x': got dtype float6",
        ),
        (
            [(torch.ones(2, 3), torch.ones(2).long())],
            ShapeError,
            "examples[0], input 'x': got shape [2, 3] of 2 dimens",
        ),
        (
            [call(2, 2), (torch.ones(2, 2, 4), torch.ones(2).long())],
            ShapeError,
            "examples[1], input 'x': got dimension 2 = 4; expected [2, n, 3]; add {2: 'name'} to dynamic_axes",
        ),
        (
            [call(9, 2)],
            ShapeError,
            "examples[0], input 'x': got n = 9; expected 2..8; give Axis('n', 2, 4, 9), or leave the example out",
        ),
        (
            [(torch.ones(2, 2, 3).to_sparse(), torch.ones(2).long())],
            InputError,
            "examples[0], input 'x': got layout sparse_coo; expected a dense tensor",
        ),
    ],
)
def test_wrong_example_is_refused_by_its_index(examples: Any, kind: type[InputError], text: str) -> None:
    """The error says which example, what is wrong with it and what helps."""
    with pytest.raises(kind) as error:
        cases_of(examples)
    assert type(error.value) is kind
    assert str(error.value).startswith(text)


def test_fix_for_an_example_outside_the_axis_works() -> None:
    """The Axis that the error gives takes the example."""
    found, _ = cases_of([call(9, 2)], axis=Axis("n", 2, 4, 9))
    assert found["example 0"].inputs[0].shape[1] == 9


def test_fix_for_an_example_outside_the_profiles_works() -> None:
    """An Axis would not help where profiles are given; a profile more does."""
    profiles = [{"n": (2, 2, 4)}, {"n": (7, 8, 8)}]
    with pytest.raises(ShapeError) as error:
        cases_of([call(6, 2)], profiles=profiles, axis="n")
    assert error.value.fix == "add a profile that holds it to profiles=, or leave the example out"
    found, _ = cases_of([call(6, 2)], profiles=[*profiles, {"n": (5, 6, 6)}], axis="n")
    assert "example 0" in found


def test_example_that_the_model_fails_on_is_named() -> None:
    """A length beyond the row is the caller's own mistake."""
    with pytest.raises(ExportError) as error:
        cases_of([call(2, 2), call(2, 7)])
    assert error.value.subject == "examples[1]"
    assert "IndexError" in error.value.got
    assert error.value.fix == "leave this example out, or correct the line"


def test_sample_outside_every_profile_is_no_case() -> None:
    """The engine could not answer it."""
    found, _ = cases_of([call(2, 2)], sample=call(5, 5), profiles=[{"n": (2, 2, 4)}, {"n": (7, 8, 8)}], axis="n")
    assert list(found) == ["example 0"]
