"""Sizes that follow from axes: what can be written, and what it is worth."""

from __future__ import annotations

import pytest

from torch2engine.core.errors import ShapeError
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.size_expression import parse_size_expression
from torch2engine.core.spec import SIGNATURE_JSON, Axis, Parameter, Signature, TensorSpec, Tree


@pytest.mark.parametrize(
    ("text", "spelling", "value"),
    [
        ("past+new", "past + new", 6),
        ("2*past", "2 * past", 8),
        (" (new + 1)*3 ", "(new + 1) * 3", 9),
        ("past - 1", "past - 1", 3),
        ("(past + new) // 4", "(past + new) // 4", 1),
    ],
)
def test_expression_has_one_spelling_and_its_value(text: str, spelling: str, value: int) -> None:
    """Sums, multiples, differences from numbers and floor divisions by them."""
    expression = parse_size_expression(text)
    assert expression.text == spelling
    assert expression.value({"past": 4, "new": 2}) == value


@pytest.mark.parametrize(
    "text",
    ["past - new", "past * new", "4 // past", "-past", "past / 2", "3", "f(past)", "past +", "0 * past", "1.5*n"],
)
def test_what_need_not_grow_with_its_axes_is_refused(text: str) -> None:
    """A profile's sides are then no sides; the error says what can be written."""
    with pytest.raises(ValueError) as error:
        parse_size_expression(text)
    assert str(error.value) == (
        f"{text!r} is no size: write a sum of axes, with positive whole numbers as factors, terms or divisors, e.g. "
        "'past + new', '2*n', 'n - 1' or 'n // 4'"
    )


def test_axes_of_one_size_become_numbers() -> None:
    """What is left is an expression, or the number itself."""
    expression = parse_size_expression("past + 2*new")
    fixed = expression.fixed({"new": 3})
    assert not isinstance(fixed, int)
    assert fixed.value({"past": 4}) == 10
    assert expression.fixed({"new": 3, "past": 1}) == 7


SIGNATURE = Signature(
    (
        TensorSpec("past", "float32", (1, "past")),
        TensorSpec("x", "float32", (1, "new")),
        TensorSpec("mask", "float32", (1, "past + new")),
    ),
    (TensorSpec("output", "float32", (1, "past + new")),),
    (Axis("past", 2, 4, 8), Axis("new", 1, 2, 4)),
    tuple(Parameter(name, "positional", Tree("tensor")) for name in ("past", "x", "mask")),
)


def test_call_whose_size_does_not_follow_from_its_axes_is_refused() -> None:
    """The input, its size, what it should be and why: for PyTorch's modules and for Processor alike."""
    assert SIGNATURE.resolve([(1, 3), (1, 2), (1, 5)]) == {"past": 3, "new": 2}
    with pytest.raises(ShapeError) as error:
        SIGNATURE.resolve([(1, 3), (1, 2), (1, 6)])
    assert str(error.value) == (
        "input 'mask': got dimension 1 = 6, but 'past + new' is 5 with past = 3, new = 2; expected "
        "[1, past + new]; pass 5 there"
    )


def test_shapes_follow_from_the_sizes_of_the_axes() -> None:
    """Inputs that are made for a profile's corners fit together."""
    assert SIGNATURE.inputs[2].sized({"past": 8, "new": 4}) == (1, 12)


def test_signature_with_expressions_survives_its_manifest() -> None:
    """Saved and read back it is the same; an expression over an unknown axis is no manifest."""
    data = SIGNATURE.to_json()
    assert Signature.from_json(data) == SIGNATURE
    data["inputs"][2]["shape"][1] = "past + other"
    with pytest.raises(SchemaError):
        SIGNATURE_JSON.check(data, "signature")
    data["inputs"][2]["shape"][1] = "past - new"
    with pytest.raises(SchemaError):
        SIGNATURE_JSON.check(data, "signature")
