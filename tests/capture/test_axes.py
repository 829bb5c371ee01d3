"""dynamic_axes and profiles: every form is read, and every wrong entry is refused with what is valid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.models import Function, TwoInputs, captured
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis, Profile

X = torch.randn(4, 3)

DOUBLE = Function(lambda x, w: x * 2)


@pytest.mark.parametrize(
    ("axes", "ranges"),
    [
        ({"a": {0: "n"}, "b": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"a": {-2: "n"}, "b": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"b": {0: "n"}, "a": {0: "n"}}, {"n": (1, 4, 4)}),
        ({"b": [0]}, {"b_dim_0": (1, 4, 4)}),
        ({"b": (0, -1)}, {"b_dim_0": (1, 4, 4), "b_dim_1": (1, 3, 3)}),
        ({"b": {1: None}}, {"b_dim_1": (1, 3, 3)}),
        ({"a": {0: Axis("n", 2, 6, 9)}, "b": {0: "n"}}, {"n": (2, 6, 9)}),
        ({"a": {0: Axis("n", max=9)}}, {"n": (1, 4, 9)}),
        ({"a": {0: Axis("n", opt=9)}}, {"n": (1, 9, 9)}),
        ({"a": {0: Axis("n", 2)}}, {"n": (2, 4, 4)}),
        ({"a": {0: Axis("n", max=8, multiple_of=2)}}, {"n": (2, 4, 8)}),
        ({"a": {0: Axis("n", 4, 4, 4)}}, {}),
        ({"a": {}}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_axes_are_read_in_every_form(axes: Any, ranges: dict[str, tuple[int, int, int]]) -> None:
    """Names, lists, negative dimensions and Axis, shared by name; a range of one size is no axis."""
    settled = captured(TwoInputs(), (X, X), axes)
    assert {axis.name: axis.range for axis in settled.signature.axes} == ranges
    assert settled.profiles == (Profile(ranges),)
    shapes = {spec.name: spec.shape for spec in settled.signature.inputs}
    assert {dim for shape in shapes.values() for dim in shape if isinstance(dim, str)} == set(ranges)


def test_pitfall_12_axes_go_to_the_input_that_is_named() -> None:
    """Entries in another order than forward's, or for the second input only, reach the input of that name."""
    settled = captured(TwoInputs(), (X, torch.randn(1, 3)), {"b": {1: "n"}, "a": {1: "n", 0: "m"}})
    assert [spec.shape for spec in settled.signature.inputs] == [("m", "n"), (1, "n")]
    settled = captured(TwoInputs(), {"b": X, "a": torch.randn(1, 3)}, {"b": {0: "m"}})
    assert [(spec.name, spec.shape) for spec in settled.signature.inputs] == [("a", (1, 3)), ("b", ("m", 3))]


def test_axis_of_a_sample_of_one_takes_the_range_that_it_is_given() -> None:
    """A batch of one is a fine sample for a batch of up to 8."""
    settled = captured(DOUBLE, X[:1], {"x": {0: Axis("n", 1, 1, 8)}})
    assert settled.signature.axis("n").range == (1, 1, 8)
    settled = captured(DOUBLE, X[:1], {"x": {0: "n"}}, [{"n": (1, 4, 8)}])
    assert settled.signature.axis("n").range == (1, 4, 8)


@pytest.mark.parametrize(
    ("profiles", "axis", "found"),
    [
        ([{"n": (1, 2, 3)}], "n", [(1, 2, 3)]),
        ([{"n": (1, 1, 1)}, {"n": (2, 8, 16)}], "n", [(1, 1, 1), (2, 8, 16)]),
        ([{"n": [1, 2, 3]}, Profile({"n": (2, 3, 4)})], "n", [(1, 2, 3), (2, 3, 4)]),
        ([{"n": (1, 1, 2)}, {}], Axis("n", 1, 4, 8), [(1, 1, 2), (1, 4, 8)]),
        ([], "n", [(1, 4, 4)]),
    ],
)
def test_profiles_give_the_ranges(profiles: Any, axis: Any, found: list[tuple[int, int, int]]) -> None:
    """Several profiles are kept in order, and one that says nothing of an axis takes its Axis's range."""
    settled = captured(DOUBLE, X, {"x": {0: axis}}, profiles)
    assert [profile.ranges["n"] for profile in settled.profiles] == found
    low, _, high = settled.signature.axis("n").range
    assert low <= min(f[0] for f in found)
    assert high >= max(f[2] for f in found)


INPUTS = "an input (a, b) or an output (output); use one of these names"


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ({"c": {0: "n"}}, f"dynamic_axes['c']: got no such tensor; expected {INPUTS}"),
        ({0: {0: "n"}}, f"dynamic_axes[0]: got no such tensor; expected {INPUTS}"),
        ([0], "dynamic_axes: got a list; expected a dict as in torch.onnx.export; e.g. {'a': {0: 'batch'}}"),
        (
            {"a": "n"},
            ("dynamic_axes['a']: got a str; expected {dimension: name or Axis} or [dimension, ...]; e.g. {0: 'batch'}"),
        ),
        (
            {"a": {2: "n"}},
            ("dynamic_axes['a']: got dimension 2; expected one of 0..1 (or -2..-1); name one that the tensor has"),
        ),
        (
            {"a": {-3: "n"}},
            ("dynamic_axes['a']: got dimension -3; expected one of 0..1 (or -2..-1); name one that the tensor has"),
        ),
        (
            {"a": {True: "n"}},
            ("dynamic_axes['a']: got dimension True; expected one of 0..1 (or -2..-1); name one that the tensor has"),
        ),
        (
            {"a": {"0": "n"}},
            ("dynamic_axes['a']: got dimension '0'; expected one of 0..1 (or -2..-1); name one that the tensor has"),
        ),
        (
            {"a": [0.5]},
            ("dynamic_axes['a']: got dimension 0.5; expected one of 0..1 (or -2..-1); name one that the tensor has"),
        ),
        (
            {"a": {0: "n", -2: "n"}},
            "dynamic_axes['a']: got dimension 0 twice; expected each dimension once; name it once",
        ),
        (
            {"a": {0: 8}},
            (
                "dynamic_axes['a']: got 8 for dimension 0; expected a name or torch2engine.Axis; e.g. "
                "{0: Axis('batch', 1, 8, 32)}"
            ),
        ),
        (
            {"a": {0: "my batch"}},
            (
                "axis name: got 'my batch'; expected an identifier; use letters, digits and underscores, "
                "e.g. Axis('batch')"
            ),
        ),
        (
            {"a": {0: "n", 1: "n"}},
            "axis 'n': got 4 in 'a' dimension 0 and 3 in 'a' dimension 1 of sample_input; expected "
            "one size per name; use two names, or a sample whose sizes agree",
        ),
        (
            {"a": {0: Axis("n", 1, 4, 8)}, "b": {0: Axis("n", 1, 4, 9)}},
            "axis 'n': got two ranges, Axis(name='n', min=1, opt=4, max=8, multiple_of=1) and "
            "Axis(name='n', min=1, opt=4, max=9, multiple_of=1); expected one range per name; pass "
            "the same Axis in both places",
        ),
        (
            {"a": {0: Axis("n", 1, 2, 3)}},
            "axis 'n': got 4 in sample_input; expected 1..3; take a sample inside the range, or widen the Axis",
        ),
        (
            {"a": {0: Axis("n", 8, 8, 16)}},
            "axis 'n': got 4 in sample_input; expected 8..16; take a sample inside the range, or widen the Axis",
        ),
        (
            {"a": {0: Axis("n", 8)}},
            "axis 'n': got 4 in sample_input; expected at least min=8; take a larger sample, or lower min to 4",
        ),
        (
            {"a": {0: Axis("n", 3, 6, 12, multiple_of=3)}},
            (
                "axis 'n': got 4 in sample_input; expected 3..12 in multiples of 3; take a sample inside "
                "the range, or widen the Axis"
            ),
        ),
        (
            {"output": {"0": "n"}},
            ("dynamic_axes['output']: got dimension '0'; expected one of ints; name one that the tensor has"),
        ),
    ],
)
def test_wrong_axes_are_refused_with_what_is_valid(axes: Any, text: str) -> None:
    """Unknown tensors, dimensions out of range, contradicting names and ranges: each error lists the valid ones."""
    with pytest.raises(DynamicAxisError) as error:
        captured(TwoInputs(), (X, X), axes)
    assert str(error.value) == text


@pytest.mark.parametrize("axis", ["n", Axis("n")], ids=["name", "Axis"])
def test_axis_without_a_range_is_refused_for_a_sample_of_one(axis: Any) -> None:
    """1..1 would be no axis: it is refused, not silently fixed."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, X[:1], {"x": {0: axis}})
    assert str(error.value) == (
        "axis 'n': got 1 in sample_input, so that its range would be 1..1; expected a larger sample, "
        "since without opt and max the range ends at its size; give a range, e.g. Axis('n', 1, 8, "
        "32), or a larger sample"
    )


@pytest.mark.parametrize(
    ("axis", "allowed"), [("n", "at least min=1"), (Axis("n", 1, 4, 8), "1..8")], ids=["named", "with a range"]
)
def test_axis_of_an_empty_sample_is_refused(axis: str | Axis, allowed: str) -> None:
    """An engine can't answer empty axes, so an empty sample is none, and no other range would help."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, torch.ones(0, 3), {"x": {0: axis}})
    assert str(error.value) == (
        f"axis 'n': got 0 in sample_input; expected {allowed}; take a sample that is not empty there, since an engine "
        "can't answer empty axes; an empty cache can be one entry that a mask hides"
    )


def test_axis_of_a_scalar_is_refused() -> None:
    """A tensor without dimensions has none to be dynamic."""
    with pytest.raises(DynamicAxisError) as error:
        captured(Function(lambda x, w: x * 2), torch.tensor(2.0), {"x": {0: "n"}})
    assert str(error.value) == (
        "dynamic_axes['x']: got dimension 0; expected one of none: it is a scalar; name one that the tensor has"
    )


@pytest.mark.parametrize(
    ("profiles", "axes", "text"),
    [
        (
            {"n": (1, 2, 3)},
            {0: "n"},
            "profiles: got a dict; expected a list of dicts or 'auto'; e.g. [{'batch': (1, 8, 32)}]",
        ),
        (
            Profile({"n": (1, 2, 3)}),
            {0: "n"},
            "profiles: got a Profile; expected a list of dicts or 'auto'; e.g. [{'batch': (1, 8, 32)}]",
        ),
        (
            [(1, 2, 3)],
            {0: "n"},
            "profiles: got a tuple; expected a list of dicts or 'auto'; e.g. [{'batch': (1, 8, 32)}]",
        ),
        ([{"m": (1, 2, 3)}], {0: "n"}, "profiles: got no axis named 'm'; expected one of n; use one of these names"),
        (
            [{"m": (1, 2, 3)}],
            {},
            "profiles: got no axis named 'm'; expected none without dynamic_axes; give dynamic_axes",
        ),
        (
            [{"n": 8}],
            {0: "n"},
            "profile of axis 'n': got 8; expected three ints (min, opt, max); e.g. {'n': (1, 8, 32)}",
        ),
        (
            [{"n": (4, 2, 8)}],
            {0: "n"},
            (
                "axis 'n': got min 4, opt 2, max 8; expected min <= opt <= max; give sizes in that "
                "order, e.g. Axis('n', 2, 4, 8)"
            ),
        ),
        (
            [{"n": (1, 8, 16)}],
            {0: Axis("n", 1, 4, 8)},
            "axis 'n': got (1, 8, 16) in a profile; expected 1..8, as its Axis says; widen the Axis, "
            "or leave the range to the profiles by naming the axis only",
        ),
        (
            [{"n": (2, 4, 7)}],
            {0: Axis("n", 2, 4, 8, multiple_of=2)},
            "axis 'n': got (2, 4, 7) in a profile; expected 2..8 in multiples of 2, as its Axis "
            "says; widen the Axis, or leave the range to the profiles by naming the axis only",
        ),
    ],
)
def test_wrong_profiles_are_refused_with_what_is_valid(profiles: Any, axes: Any, text: str) -> None:
    """Unknown axes, other forms and ranges outside the Axis are errors that say what would be right."""
    with pytest.raises(DynamicAxisError) as error:
        captured(DOUBLE, X, {"x": axes}, profiles)
    assert str(error.value) == text


def test_axes_named_for_outputs_are_kept_for_export() -> None:
    """Entries for outputs are no inputs, and export checks them."""
    settled = captured(DOUBLE, X, {"output": {0: Axis("n"), 1: None}, "x": {0: "n"}})
    assert settled.output_axes == {"output": {0: "n", 1: None}}
