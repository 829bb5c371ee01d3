"""Structures there and back: every container, every name, and every wrong call refused in words."""

from __future__ import annotations

import collections
import dataclasses
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.support.models import Box, Pair
from torch2engine.core.containers import CONTAINERS, find_class
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.pytree import Inputs, as_inputs, bind, flatten, is_tensor, unflatten
from torch2engine.core.spec import Parameter
from torch2engine.core.structure import TREE_JSON

X, Y = torch.arange(6.0).reshape(2, 3), torch.ones(2)


class WindowCache:
    """A cache of nobody's that PyTorch has not registered."""


@dataclasses.dataclass(frozen=True)
class Derived:
    """A dataclass that computes, which must not happen twice."""

    tensor: Any
    doubled: Any = None

    def __post_init__(self) -> None:
        if self.doubled is not None:
            raise AssertionError("rebuilt by __init__")
        object.__setattr__(self, "doubled", self.tensor * 2)


class Stack(list[Any]):
    """A list of its own class."""


class NotAClass:
    """Holds what find_class must refuse."""

    def method(self) -> None:
        """No class."""


# sample_input


@pytest.mark.parametrize(
    ("sample", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, 3), (X, 3), {}),
        ([X, Y], (X, Y), {}),
        ({"x": X}, (), {"x": X}),
        (collections.UserDict({"x": X}), (), {"x": X}),
        (Inputs(X, y=Y), (X,), {"y": Y}),
        ((), (), {}),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping", "inputs", "empty"],
)
def test_sample_input_is_read_in_every_form(sample: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A tensor, positionals, keywords, or both, become args and kwargs."""
    inputs = as_inputs(sample)
    assert len(inputs.args) == len(args)
    assert all(a is b for a, b in zip(inputs.args, args, strict=True))
    assert inputs.kwargs.keys() == kwargs.keys()
    assert all(inputs.kwargs[key] is kwargs[key] for key in kwargs)


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (
            {0: X},
            "sample_input: got a Mapping with the key 0; expected keyword names (str); for a model "
            "that takes one dict, pass a tuple: (the_dict,)",
        ),
        *[
            (
                sample,
                f"sample_input: got {kind}; expected a Tensor, a tuple or list of positional "
                "arguments, a Mapping of keyword arguments, or Inputs(...); e.g. "
                "sample_input=torch.randn(8, 3, 224, 224)",
            )
            for sample, kind in [
                (None, "None"),
                (3, "an int"),
                (np.zeros(3), "an ndarray"),
                ("x", "a str"),
                ({1}, "a set"),
            ]
        ],
    ],
)
def test_sample_input_in_another_form_is_refused(sample: Any, text: str) -> None:
    """The error lists the forms that there are."""
    with pytest.raises(InputError) as error:
        as_inputs(sample)
    assert str(error.value) == text


def test_inputs_show_their_arguments() -> None:
    """An Inputs reads as the call that it stands for."""
    assert repr(Inputs(1, "a", scale=2.0)) == "Inputs(1, 'a', scale=2.0)"


def test_tree_needs_no_torch(run_python: Callable[[str], Any]) -> None:
    """Nothing can be a tensor where torch is not loaded, and asking does not load it."""
    code = (
        "import json, sys; from torch2engine.core.pytree import flatten, is_tensor; flatten({'a': [1, None]}, 'x');"
        "print(json.dumps([is_tensor(3), 'torch' in sys.modules]))"
    )
    assert run_python(code) == [False, False]
    assert is_tensor(X)
    assert not is_tensor(X.numpy())


# flatten and unflatten


def same(left: Any, right: Any) -> bool:
    """Equal types all the way down, around the very same tensors."""
    if type(left) is not type(right):
        return False
    if is_tensor(left):
        return left is right
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    return left == right or (left != left and right != right)


STRUCTURES: dict[str, tuple[Any, list[str]]] = {
    "tensor": (X, ["r"]),
    "none": (None, []),
    "scalars": ((1, 2.5, True, "text", None, float("nan")), []),
    "list": ([X, Y], ["r.0", "r.1"]),
    "tuple": ((X, (Y,)), ["r.0", "r.1.0"]),
    "empty": ([(), {}, []], []),
    "dict": ({"b": X, "a": Y, 7: X}, ["r.b", "r.a", "r.7"]),
    "ordered": (collections.OrderedDict(b=X, a=Y), ["r.b", "r.a"]),
    "namedtuple": (Pair(X, {"q": Y}), ["r.left", "r.right.q"]),
    "dataclass": (Box(X, 5, [Y]), ["r.tensor", "r.maybe.0"]),
    "computing": (Derived(X), ["r.tensor", "r.doubled"]),
    "model output": (BaseModelOutput(last_hidden_state=X, hidden_states=(X, Y)), None),
    "return types": (torch.max(X, 1), ["r.0", "r.1"]),
    "own list": (Stack([X, Y]), ["r.0", "r.1"]),
    "nested": ({"a": [Pair(X, None), {"b": Box(Y)}], "c": 1}, ["r.a.0.left", "r.a.1.b.tensor"]),
    "one tensor twice": ([X, X], ["r.0", "r.1"]),
    "clashing keys": ({"a": {"b": X}, "a.b": Y}, ["r.a.b", "r.a.b_1"]),
    "int and str keys": ({1: X, "1": Y}, ["r.1", "r.1_1"]),
    "numbered key": ({1: X, "1": Y, "1_1": X}, ["r.1", "r.1_2", "r.1_1"]),
}


@pytest.mark.parametrize("value", [value for value, _ in STRUCTURES.values()], ids=STRUCTURES)
def test_structure_survives_there_and_back(value: Any) -> None:
    """Every container comes back in its own type around the same tensors, also after its tree went through JSON."""
    flat = flatten(value, "r")
    assert same(unflatten(flat.tree, flat.leaves), value)
    assert flat.tree.leaves() == len(flat.leaves)
    reloaded = TREE_JSON.decode(TREE_JSON.encode(flat.tree))
    assert same(unflatten(reloaded, flat.leaves), value)


@pytest.mark.parametrize(("value", "names"), [s for s in STRUCTURES.values() if s[1] is not None])
def test_leaves_are_named_by_their_path(value: Any, names: list[str]) -> None:
    """A leaf's name is the way to it, and no two are called alike."""
    assert flatten(value, "r").names == names


def test_defaultdict_comes_back_as_a_dict() -> None:
    """A factory can't be kept, so the result is the plain dict that it equals."""
    flat = flatten(collections.defaultdict(list, a=X), "r")
    assert same(unflatten(flat.tree, flat.leaves), {"a": X})


def test_result_fields_are_named_without_the_root() -> None:
    """A model's outputs are called as its fields are, and a bare tensor or sequence by the root."""
    assert flatten({"logits": X, "states": [X, Y]}, "output", result=True).names == ["logits", "states.0", "states.1"]
    assert flatten(Pair(X, Y), "output", result=True).names == ["left", "right"]
    assert flatten(Box(X), "output", result=True).names == ["tensor"]
    assert flatten(X, "output", result=True).names == ["output"]
    assert flatten((X, {"a": Y}), "output", result=True).names == ["output.0", "output.1.a"]


KNOWN = "tensors, None, bool, int, float, str, and dicts, lists, tuples, NamedTuples, dataclasses of these"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({X}, f"'r': got a builtins.set; expected {KNOWN}"),
        ({"a": [object()]}, f"'r.a.0': got a builtins.object; expected {KNOWN}"),
        (X.numpy(), f"'r': got a numpy.ndarray; expected {KNOWN}; convert it with torch.from_numpy"),
        ({(1, 2): X}, "'r': got the dict key (1, 2); expected str or int keys; rename the keys to texts"),
        (
            {"past": WindowCache()},
            f"'r.past': got a tests.core.test_pytree.WindowCache; expected {KNOWN}; "
            "register it with torch.utils._pytree, or for a Hugging Face model pass use_cache=False",
        ),
    ],
    ids=["set", "object", "numpy", "key", "cache"],
)
def test_flatten_refuses_what_no_engine_takes(value: Any, text: str) -> None:
    """The error names the path, the type and, where there is one, the way out."""
    with pytest.raises(InputError) as error:
        flatten(value, "r")
    assert str(error.value) == text


OWN = "the model's own types, in which results are rebuilt"
HERE = "define the class at the top level of a module that is imported where the artifact is loaded"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "no_such_module:C",
            "got no such class here (module 'no_such_module' is not imported, and a manifest may not import it); "
            f"expected {OWN}; import no_such_module before the call, as a program of your own would",
        ),
        (
            "collections:NoSuch",
            f"got no such class here (module 'collections' has no attribute 'NoSuch'); expected {OWN}; {HERE}",
        ),
        (":C", f"got no such class here (module '' is not imported, and a manifest may not import it); expected {OWN}"),
        (
            "tests.core.test_pytree:NotAClass.method",
            ("got no such container; expected a mapping class; deploy the model again"),
        ),
    ],
)
def test_class_that_is_not_found_is_named(name: str, text: str) -> None:
    """A result class that can't be imported is an ArtifactError that says which."""
    with pytest.raises(ArtifactError) as error:
        find_class(name, CONTAINERS["mapping"])
    assert str(error.value).startswith(f"type '{name}': {text}")


def test_class_is_found_by_its_qualified_name() -> None:
    """A class of the standard library and one of the user's own."""
    assert find_class("collections:OrderedDict", CONTAINERS["mapping"]) is collections.OrderedDict
    assert find_class("tests.support.models:Pair", CONTAINERS["namedtuple"]) is Pair


@pytest.mark.parametrize("kind", ["namedtuple", "sequence", "mapping", "dataclass"])
@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "builtins:eval", "torch.nn:Module", "pathlib:Path", "os:_Environ"]
)
def test_class_that_is_no_such_container_is_refused(name: str, kind: str) -> None:
    """A manifest can't have just any callable called with what it holds."""
    with pytest.raises(ArtifactError) as error:
        find_class(name, CONTAINERS[kind])
    assert str(error.value) == f"type '{name}': got no such container; expected a {kind} class; deploy the model again"


def test_finding_a_class_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that a manifest names is not imported, nor is its __getattr__ called or a name of another home taken."""
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    lazy = ModuleType("lazy")
    vars(lazy).update(__getattr__=pytest.fail, Pair=Pair)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    for name in ("planted:C", "lazy:C", "lazy:Pair"):
        with pytest.raises(ArtifactError):
            find_class(name, CONTAINERS["namedtuple"])
    assert "planted" not in sys.modules
    assert not (tmp_path / "planted.ran").exists()


# bind


def parameter(name: str, value: Any, kind: str = "positional", **default: Any) -> Parameter:
    """A parameter as captured from a sample that gave `value`."""
    return Parameter(name, kind, flatten(value, name).tree, **default)


PLAIN = [
    parameter("x", X),
    parameter("states", [X, {"k": Y}]),
    parameter("scale", 2.0, default=2.0, optional=True),
    Parameter("mask", "positional", None, None, True),
    parameter("flag", True, "keyword"),
    Parameter("size", "keyword", None, None, False),
]
VALUE, ANEW = "redeploy with this value in sample_input, or make it a tensor", "redeploy with it in sample_input"
GIVEN = {"x": X, "states": [Y, {"k": X}], "flag": True}


def test_bind_gives_the_leaves_in_the_signatures_order() -> None:
    """Positional or by keyword, in any order, the same tensors come out."""
    positional = bind(PLAIN, (X, [Y, {"k": X}]), {"flag": True})
    named = bind(PLAIN, (), dict(reversed(GIVEN.items())))
    for leaves in (positional, named):
        assert len(leaves) == 3
        assert leaves[0] is X
        assert leaves[1] is Y
        assert leaves[2] is X


@pytest.mark.parametrize(
    "extra",
    [{"scale": 2.0}, {"mask": None}, {"scale": 2.0, "mask": None}, {"states": (Y, collections.OrderedDict(k=X))}],
    ids=["same constant", "same default", "both", "other containers of the same shape"],
)
def test_bind_takes_what_says_the_same(extra: dict[str, Any]) -> None:
    """A constant or default passed as it was captured, and a list for a tuple, change nothing."""
    assert len(bind(PLAIN, (), {**GIVEN, **extra})) == 3


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (
            (X,),
            {"flag": True},
            "argument 'states': got no value; expected the arguments x, states, scale, flag; pass states",
        ),
        (
            (X, [Y, {"k": X}]),
            {},
            "argument 'flag': got no value; expected the arguments x, states, scale, flag; pass flag=True",
        ),
        (
            (X, [Y, {"k": X}], 2.0, None, X, X),
            {},
            "call: got 6 positional arguments; expected at most 4: x, states, scale, mask; leave out the rest",
        ),
        (
            (),
            {**GIVEN, "y": X},
            "argument 'y': got an unknown name; expected one of x, states, scale, mask, flag, size; leave it out",
        ),
        (
            (),
            {**GIVEN, "flagg": X},
            "argument 'flagg': got an unknown name; expected one of x, states, scale, mask, flag, size; leave it out",
        ),
        ((X,), GIVEN, "argument 'x': got two values; expected one; pass it once"),
        (
            (),
            {**GIVEN, "scale": 3.0},
            "argument 'scale': got 3.0; expected 2.0, a constant of the engine; " + VALUE,
        ),
        (
            (),
            {**GIVEN, "scale": 2},
            "argument 'scale': got 2; expected 2.0, a constant of the engine; " + VALUE,
        ),
        (
            (),
            {**GIVEN, "flag": 1},
            "argument 'flag': got 1; expected True, a constant of the engine; " + VALUE,
        ),
        (
            (),
            {**GIVEN, "flag": X},
            "argument 'flag': got a tensor; expected True, a constant of the engine; " + VALUE,
        ),
        (
            (),
            {**GIVEN, "scale": np.full(2, 2.0)},
            "argument 'scale': got an ndarray; expected 2.0, a constant of the engine; " + VALUE,
        ),
        (
            (),
            {**GIVEN, "mask": X},
            "argument 'mask': got a tensor; expected its default None, since it was not in sample_input; " + ANEW,
        ),
        (
            (),
            {**GIVEN, "mask": X.numpy()},
            "argument 'mask': got an ndarray; expected its default None, since it was not in sample_input; " + ANEW,
        ),
        (
            (),
            {**GIVEN, "size": None},
            "argument 'size': got None; expected its default, since it was not in sample_input; " + ANEW,
        ),
        (
            (),
            {**GIVEN, "x": X.numpy()},
            "input 'x': got an ndarray; expected a torch.Tensor; pass torch.as_tensor(...) on the engine's device",
        ),
        (
            (),
            {**GIVEN, "x": [X]},
            "input 'x': got a list; expected a torch.Tensor; pass torch.as_tensor(...) on the engine's device",
        ),
        (
            (),
            {**GIVEN, "states": [X]},
            (
                "argument 'states': got a list of 1; expected a list of 2: 0, 1; pass the structure that "
                "sample_input had"
            ),
        ),
        (
            (),
            {**GIVEN, "states": X},
            ("argument 'states': got a tensor; expected a list of 2: 0, 1; pass the structure that sample_input had"),
        ),
        (
            (),
            {**GIVEN, "states": [X, {"k": X, "l": X}]},
            ("argument 'states.1': got a dict of 2; expected a dict of 1: k; pass the structure that sample_input had"),
        ),
        (
            (),
            {**GIVEN, "states": [X, [X]]},
            ("argument 'states.1': got a list of 1; expected a dict of 1: k; pass the structure that sample_input had"),
        ),
    ],
)
def test_bind_refuses_another_call(args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    """Missing, extra, doubled, other constants, other structure: refused by name with what would be right."""
    with pytest.raises(InputError) as error:
        bind(PLAIN, args, kwargs)
    assert str(error.value) == text


def test_bind_takes_nan_for_nan() -> None:
    """NaN is the one constant that does not equal itself, and still is the same."""
    assert bind([parameter("x", X), parameter("fill", float("nan"))], (X, float("nan")), {}) == [X]


def test_bind_reads_fields_of_dataclasses_and_named_tuples() -> None:
    """Classes are matched by their fields."""
    parameters = [parameter("box", Box(X, 3)), parameter("pair", Pair(X, Y))]
    leaves = bind(parameters, (Box(Y, 3), Pair(Y, X)), {})
    assert [leaf is wanted for leaf, wanted in zip(leaves, [Y, Y, X], strict=True)] == [True] * 3
    with pytest.raises(InputError) as error:
        bind(parameters, (Box(X, 4), Pair(X, Y)), {})
    assert str(error.value).startswith("argument 'box.number': got 4; expected 3, a constant of the engine")
    with pytest.raises(InputError) as error:
        bind(parameters, (X, Pair(X, Y)), {})
    assert str(error.value) == (
        "argument 'box': got a tensor; expected a Box of 3: tensor, number, maybe; pass the "
        "structure that sample_input had"
    )


VARIADIC = [
    parameter("x", X),
    parameter("rest", (X, Y), "var_positional"),
    parameter("named", {"mask": X, "size": 2}, "var_keyword"),
]


def test_bind_follows_variadic_arguments() -> None:
    """*args and **kwargs are matched item by item."""
    leaves = bind(VARIADIC, (X, Y, X), {"size": 2, "mask": Y})
    assert [leaf is wanted for leaf, wanted in zip(leaves, [X, Y, X, Y], strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((X, X), {"mask": X, "size": 2}, "argument 'rest': got a tuple of 1; expected a tuple of 2: 0, 1"),
        ((X, X, X, X), {"mask": X, "size": 2}, "argument 'rest': got a tuple of 3; expected a tuple of 2: 0, 1"),
        ((X, X, X), {"mask": X}, "argument 'named': got a dict of 1; expected a dict of 2: mask, size"),
        ((X, X, X), {"mask": X, "size": 3}, "argument 'size': got 3; expected 2, a constant of the engine"),
        ((X, X, X), {"mask": 1, "size": 2}, "input 'mask': got an int; expected a torch.Tensor"),
    ],
)
def test_bind_refuses_other_variadic_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    """Keywords that **kwargs caught are named as the caller named them."""
    with pytest.raises(InputError) as error:
        bind(VARIADIC, args, kwargs)
    assert str(error.value).startswith(text)


LEFT_OUT = [parameter("x", X), Parameter("rest", "var_positional"), Parameter("named", "var_keyword")]


def test_bind_takes_a_call_without_variadic_arguments() -> None:
    """A model with *args and **kwargs that the sample did not use is called without them."""
    assert bind(LEFT_OUT, (X,), {}) == [X]
    assert bind(LEFT_OUT, (), {"x": X}) == [X]


@pytest.mark.parametrize(
    ("args", "kwargs", "name", "got"),
    [((X, Y), {}, "*rest", "a tuple of 1"), ((X,), {"mask": Y}, "mask", "a tensor")],
    ids=["positional", "keyword"],
)
def test_bind_refuses_variadic_arguments_that_the_sample_left_out(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str, got: str
) -> None:
    """What the engine was not built for is not dropped silently."""
    with pytest.raises(InputError) as error:
        bind(LEFT_OUT, args, kwargs)
    assert str(error.value) == (
        f"argument '{name}': got {got}; expected a call without it, since it was not in sample_input; "
        "redeploy with it in sample_input"
    )


@pytest.mark.usefixtures("quick_collection")
def test_pitfall_36_tensors_go_with_their_last_name() -> None:
    """Nothing that was taken apart or put together waits for the cyclic garbage collector: results are GPU memory."""
    gc.collect()
    gc.disable()
    try:
        value = {"a": torch.ones(2), "b": [torch.ones(3), (torch.ones(4), None)]}
        flat = flatten(value, "x")
        again = unflatten(flat.tree, flat.leaves)
        seen = [weakref.ref(leaf) for leaf in flat.leaves]
        assert len(seen) == 3
        del value, flat, again
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()
