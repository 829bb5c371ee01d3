"""Specs as data: what they refuse and in which words, which casts lose nothing, and JSON there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from torch2engine.core.errors import DtypeError, DynamicAxisError, ShapeError
from torch2engine.core.spec import TENSOR_JSON, Axis, Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.core.structure import PARAMETER_JSON, TREE_JSON

# Axis


def test_axis_by_name_alone_leaves_opt_and_max_to_the_sample() -> None:
    """A bare name starts at 1 and is not resolved yet."""
    axis = Axis("batch")
    assert (axis.min, axis.opt, axis.max, axis.multiple_of, axis.resolved) == (1, None, None, 1, False)
    assert Axis("batch", 1, 8, 32).resolved
    assert Axis("batch", 1, 8, 32).range == (1, 8, 32)


def test_axis_min_of_one_is_raised_to_the_multiple() -> None:
    """multiple_of=8 makes 8 the smallest size, so that nobody has to say it twice."""
    assert Axis("length", opt=64, max=512, multiple_of=8).range == (8, 64, 512)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Axis("batch size"),
            (
                "axis name: got 'batch size'; expected an identifier; use letters, digits and "
                "underscores, e.g. Axis('batch')"
            ),
        ),
        (
            lambda: Axis(""),
            "axis name: got ''; expected an identifier; use letters, digits and underscores, e.g. Axis('batch')",
        ),
        (
            lambda: Axis(0),  # type: ignore[arg-type]
            "axis name: got 0; expected an identifier; use letters, digits and underscores, e.g. Axis('batch')",
        ),
        (
            lambda: Axis("n", min=0),
            "axis 'n': got min = 0; expected an int of at least 1; an engine can't answer empty axes",
        ),
        (
            lambda: Axis("n", min=True),
            "axis 'n': got min = True; expected an int of at least 1; an engine can't answer empty axes",
        ),
        (
            lambda: Axis("n", opt=1.5),  # type: ignore[arg-type]
            "axis 'n': got opt = 1.5; expected an int of at least 1 or None; an engine can't answer empty axes",
        ),
        (
            lambda: Axis("n", max=-1),
            "axis 'n': got max = -1; expected an int of at least 1 or None; an engine can't answer empty axes",
        ),
        (
            lambda: Axis("n", 1, 8, 4),
            (
                "axis 'n': got min 1, opt 8, max 4; expected min <= opt <= max; give sizes in that "
                "order, e.g. Axis('n', 1, 4, 8)"
            ),
        ),
        (
            lambda: Axis("n", min=2, max=1),
            (
                "axis 'n': got min 2, opt None, max 1; expected min <= opt <= max; give sizes in that "
                "order, e.g. Axis('n', 1, 2)"
            ),
        ),
        (
            lambda: Axis("n", 8, 12, 16, multiple_of=8),
            "axis 'n': got the size 12; expected multiples of multiple_of=8 for min, opt and max; round them",
        ),
    ],
)
def test_axis_refuses_what_contradicts_itself(make: Callable[[], Axis], text: str) -> None:
    """A wrong axis never gets past construction."""
    with pytest.raises(DynamicAxisError) as error:
        make()
    assert str(error.value) == text
    assert error.value.axis in ("n", "")


# Profile


def test_profile_knows_its_sizes() -> None:
    """min, opt and max by axis name, and whether sizes lie inside."""
    profile = Profile({"batch": (1, 4, 8), "length": (16, 64, 512)})
    assert profile.sizes(0) == {"batch": 1, "length": 16}
    assert profile.sizes(1) == {"batch": 4, "length": 64}
    assert profile.sizes(2) == {"batch": 8, "length": 512}
    assert str(profile) == "batch 1..8 (opt 4), length 16..512 (opt 64)"
    assert profile.contains({"batch": 8, "length": 16})
    assert not profile.contains({"batch": 9, "length": 16})
    assert not profile.contains({"batch": 8, "length": 15})
    assert Profile({}).contains({})


def test_profile_equality_ignores_the_order_of_axes() -> None:
    """Equal profiles hash alike, lists and tuples too."""
    left = Profile({"a": (1, 2, 3), "b": (4, 5, 6)})
    right = Profile({"b": [4, 5, 6], "a": [1, 2, 3]})  # type: ignore[dict-item]
    assert left == right
    assert len({left, right}) == 1


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        ({"n": 8}, "profile of axis 'n': got 8; expected three ints (min, opt, max); e.g. {'n': (1, 8, 32)}"),
        ({"n": (1, 8)}, "profile of axis 'n': got (1, 8); expected three ints (min, opt, max); e.g. {'n': (1, 8, 32)}"),
        ({"n": "1,8"}, "profile of axis 'n': got '1,8'; expected three ints (min, opt, max); e.g. {'n': (1, 8, 32)}"),
        (
            {"n": (1, None, 8)},
            "profile of axis 'n': got (1, None, 8); expected three ints (min, opt, max); e.g. {'n': (1, 8, 32)}",
        ),
        (
            {"n": (4, 2, 8)},
            (
                "axis 'n': got min 4, opt 2, max 8; expected min <= opt <= max; give sizes in that "
                "order, e.g. Axis('n', 2, 4, 8)"
            ),
        ),
        (
            {"n": (0, 1, 8)},
            "axis 'n': got min = 0; expected an int of at least 1; an engine can't answer empty axes",
        ),
    ],
)
def test_profile_refuses_what_is_no_range(ranges: Any, text: str) -> None:
    """A range is three ints in order."""
    with pytest.raises(DynamicAxisError) as error:
        Profile(ranges)
    assert str(error.value) == text
    assert error.value.axis == "n"


# TensorSpec


def test_tensor_spec_reads_like_a_type() -> None:
    """The text names dtype and dimensions; sizes fill the names in."""
    spec = TensorSpec("x", "float16", ("batch", 3, "length"))
    assert str(spec) == "x: float16[batch, 3, length]"
    assert spec.sized({"batch": 2, "length": 7}) == (2, 3, 7)
    assert str(TensorSpec("scale", "float32", ())) == "scale: float32[]"


# Signature

SIGNATURE = Signature(
    inputs=(
        TensorSpec("image", "float32", ("batch", 3, "side", "side")),
        TensorSpec("mask", "bool", ("batch", "side")),
        TensorSpec("step", "int64", ()),
    ),
    outputs=(TensorSpec("y", "float32", ("batch", 10)),),
    axes=(Axis("batch", 1, 4, 8), Axis("side", 32, 64, 128, multiple_of=32)),
    parameters=(
        Parameter("image", "positional", Tree("tensor")),
        Parameter("mask", "keyword", Tree("dict", ("deep", 3), (Tree("tensor"), Tree("constant", value="on")))),
        Parameter("rest", "var_positional", Tree("tuple", (0,), (Tree("tensor"),))),
        Parameter("scale", "keyword", None, 0.5),
    ),
    output=Tree("dataclass", ("y",), (Tree("tensor"),), type_name="models:Output"),
)


def test_resolve_finds_every_axis_from_the_shapes() -> None:
    """One size per name, wherever it stands."""
    assert SIGNATURE.resolve([(2, 3, 64, 64), (2, 64), ()]) == {"batch": 2, "side": 64}
    assert SIGNATURE.resolve([(0, 3, 0, 0), (0, 0), ()]) == {"batch": 0, "side": 0}


@pytest.mark.parametrize(
    ("shapes", "name", "text"),
    [
        (
            [(2, 3, 64), (2, 64), ()],
            "image",
            "input 'image': got shape [2, 3, 64] of 3 dimensions; expected [batch, 3, side, side]; "
            "pass a tensor of that shape, not [2, 3, 64]",
        ),
        (
            [(2, 3, 64, 64), (2, 64), (1,)],
            "step",
            "input 'step': got shape [1] of 1 dimensions; expected []; pass a tensor of that shape, not [1]",
        ),
        (
            [(2, 4, 64, 64), (2, 64), ()],
            "image",
            ("input 'image': got dimension 1 = 4; expected [batch, 3, side, side]; add {1: 'name'} to dynamic_axes"),
        ),
        (
            [(2, 3, 64, 96), (2, 64), ()],
            "image",
            "input 'image': got side = 96, but 64 in input 'image'; expected [batch, 3, side, side]; "
            "pass a tensor of that shape, not [2, 3, 64, 96]",
        ),
        (
            [(2, 3, 64, 64), (4, 64), ()],
            "mask",
            "input 'mask': got batch = 4, but 2 in input 'image'; expected [batch, side]; pass a "
            "tensor of that shape, not [4, 64]",
        ),
        (
            [(2, 3, 40, 40), (2, 40), ()],
            "image",
            "input 'image': got side = 40; expected a multiple of 32; pad axis 'side' to a multiple of 32",
        ),
    ],
)
def test_resolve_refuses_shapes_that_do_not_fit(shapes: list[tuple[int, ...]], name: str, text: str) -> None:
    """The error names the input, what came, what is allowed and how to mend it."""
    with pytest.raises(ShapeError) as error:
        SIGNATURE.resolve(shapes)
    assert str(error.value) == text
    assert error.value.name == name


def test_axis_is_found_by_name() -> None:
    """The signature's axes are looked up by name."""
    assert SIGNATURE.axis("side").multiple_of == 32


def test_check_dtype_takes_the_own_dtype_and_lossless_ones() -> None:
    """No error for the input's dtype or a cast that loses nothing."""
    image, _, step = SIGNATURE.inputs
    for dtype in ("float32", "float16", "bfloat16"):
        SIGNATURE.check_dtype(image, dtype)
    for dtype in ("int64", "int32", "uint8"):
        SIGNATURE.check_dtype(step, dtype)


@pytest.mark.parametrize(
    ("position", "dtype", "text"),
    [
        (
            0,
            "float64",
            "input 'image': got dtype float64; expected float32 (or float16, bfloat16, cast without "
            "loss); cast it yourself with .to(float32) if the loss is meant",
        ),
        (
            1,
            "uint8",
            "input 'mask': got dtype uint8; expected bool; cast it yourself with .to(bool) if the loss is meant",
        ),
        (
            2,
            "float32",
            "input 'step': got dtype float32; expected int64 (or uint8, int8, int16, int32, cast "
            "without loss); cast it yourself with .to(int64) if the loss is meant",
        ),
    ],
)
def test_check_dtype_refuses_a_cast_that_loses(position: int, dtype: str, text: str) -> None:
    """The error lists what would be taken; it is a TypeError and a ValueError too."""
    with pytest.raises(DtypeError) as error:
        SIGNATURE.check_dtype(SIGNATURE.inputs[position], dtype)
    assert str(error.value) == text
    assert isinstance(error.value, TypeError)
    assert isinstance(error.value, ValueError)


# JSON


def test_signature_survives_json() -> None:
    """Through text and back nothing is lost: tuples, keys, constants and type names."""
    assert Signature.from_json(json.loads(json.dumps(SIGNATURE.to_json()))) == SIGNATURE


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 10**20, 0.1, -0.0, "", "ü"])
def test_constants_survive_json_with_their_type(value: Any) -> None:
    """1, 1.0 and True stay what they are."""
    tree = Tree("list", (0,), (Tree("constant", value=value),))
    parameter = Parameter("p", "keyword", tree, value)
    back = PARAMETER_JSON.decode(json.loads(json.dumps(PARAMETER_JSON.encode(parameter))))
    assert repr(back) == repr(parameter)


def test_empty_containers_survive_json() -> None:
    """An empty dict is not an empty list, and a parameter that the sample left out has no tree."""
    for tree in (Tree("dict"), Tree("list"), Tree("namedtuple", type_name="m:T")):
        assert TREE_JSON.decode(json.loads(json.dumps(TREE_JSON.encode(tree)))) == tree
    parameter = Parameter("p", "var_keyword")
    assert PARAMETER_JSON.decode(json.loads(json.dumps(PARAMETER_JSON.encode(parameter)))) == parameter


def test_tree_counts_its_tensors() -> None:
    """Constants are no leaves."""
    tree = Tree("dict", ("a", "b"), (Tree("tensor"), Tree("list", (0, 1), (Tree("tensor"), Tree("constant")))))
    assert tree.leaves() == 2


def test_axis_profile_and_tensor_spec_survive_json() -> None:
    """Each comes back equal, an unresolved axis too."""
    for axis in (Axis("n"), Axis("n", 8, 16, 32, multiple_of=8)):
        assert Axis.from_json(json.loads(json.dumps(axis.to_json()))) == axis
    for profile in (Profile({"batch": (1, 4, 8), "side": (32, 64, 128)}), Profile({"batch": (1, 1, 1)})):
        assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
    for spec in (*SIGNATURE.inputs, *SIGNATURE.outputs):
        assert TENSOR_JSON.decode(json.loads(json.dumps(TENSOR_JSON.encode(spec)))) == spec
