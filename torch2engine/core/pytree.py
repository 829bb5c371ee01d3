"""Arguments and results of any structure ↔ flat lists of tensors.

Enters: what a caller passes to, or gets from, a module. Leaves: the tensors in a fixed order, with names, and a
`Tree` that puts them back into the same types. Separate because the sample, every call and every result go through
it, before and after a save. It never imports torch: a value can only be a Tensor if torch is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from torch2engine.core.containers import CONTAINERS, Container, Key, container_of, find_class
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.package import public
from torch2engine.core.spec import Parameter, Tree
from torch2engine.core.wording import did_you_mean, kind_of, with_article

__all__ = [
    "TENSORS",
    "Flat",
    "Inputs",
    "Key",
    "LeafKind",
    "argument_at",
    "as_inputs",
    "assign",
    "bind",
    "can_refill",
    "container_classes",
    "flatten",
    "is_tensor",
    "leaf_paths",
    "refill",
    "unflatten",
    "unique_names",
]

_CONSTANTS = (type(None), bool, int, float, str)
_NUMBERS = (bool, int, float)
_LONG_TEXT = 120


@public
class Inputs:
    """Positional and keyword arguments together, as a sample_input or in a calibration set.

    >>> inputs = t2e.Inputs(sample, scale=2.0)  # for a model that is called as model(sample, scale=2.0)
    >>> len(inputs.args), inputs.kwargs
    (1, {'scale': 2.0})
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        parts = [repr(arg) for arg in self.args] + [f"{key}={value!r}" for key, value in self.kwargs.items()]
        return f"Inputs({', '.join(parts)})"


def as_inputs(sample: Any) -> Inputs:
    """Read a sample_input: a Tensor, a tuple or list of positionals, a Mapping of keywords, or `Inputs`.

    Raises:
        InputError: anything else.
    """
    if isinstance(sample, Inputs):
        return sample
    if is_tensor(sample):
        return Inputs(sample)
    if isinstance(sample, Mapping):
        items = cast("Mapping[Any, Any]", sample)
        wrong = [key for key in items if not isinstance(key, str)]
        if wrong:
            raise InputError(
                "sample_input",
                got=f"a Mapping with the key {wrong[0]!r}",
                allowed="keyword names (str)",
                fix="for a model that takes one dict, pass a tuple: (the_dict,)",
            )
        return Inputs(**items)
    if isinstance(sample, (tuple, list)):
        return Inputs(*cast("Sequence[Any]", sample))
    raise InputError(
        "sample_input",
        got=kind_of(sample),
        allowed="a Tensor, a tuple or list of positional arguments, a Mapping of keyword arguments, or Inputs(...)",
        fix="e.g. sample_input=torch.randn(8, 3, 224, 224)",
    )


def is_tensor(value: Any) -> bool:
    """Tell whether `value` is a torch.Tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@dataclass(frozen=True)
class LeafKind:
    """The kind of a call's leaves: `fits` recognises one; `allowed` and `fix` go into the error for any other value."""

    fits: Callable[[Any], bool]
    allowed: str
    fix: str


TENSORS = LeafKind(is_tensor, "a torch.Tensor", "pass torch.as_tensor(...) on the engine's device")


@dataclass(frozen=True)
class Flat:
    """A flattened value: its structure, its tensors in order, and their dotted names."""

    tree: Tree
    leaves: list[Any]
    names: list[str]


def flatten(value: Any, root: str, *, result: bool = False, arguments: Mapping[int, str] | None = None) -> Flat:
    """Take a value apart.

    Args:
        value: any pytree of tensors, None and Python scalars.
        root: the name of the whole, e.g. the parameter's name.
        result: True for what a model returns: fields at the top are then named without the root (``"logits"``).
        arguments: the names of parameters by the id of their values; where these are met, they are taken as a whole.

    Returns:
        tensors in depth-first order, named by path (``"states.0"``, ``"batch.pixel_values"``).

    Raises:
        InputError: a value that is neither a tensor, a constant nor a known container.
    """
    flat = Flat(Tree("tensor"), [], [])
    tree = _flatten(value, root, root if result else None, flat, arguments or {})
    return Flat(tree, flat.leaves, unique_names(flat.names))


# Not a nested function, and neither is _unflatten. A function that calls itself by its closure would keep the leaves
# until the cyclic garbage collector runs.
def _flatten(node: Any, path: str, bare: str | None, into: Flat, arguments: Mapping[int, str]) -> Tree:
    """Make the tree of a node and collect its tensors; fields of a result at path `bare` are named without the path."""
    if is_tensor(node):
        into.leaves.append(node)
        into.names.append(path)
        return Tree("tensor")
    if isinstance(node, _CONSTANTS):
        return Tree("constant", value=node)
    if id(node) in arguments:
        return Tree("argument", value=arguments[id(node)])
    container = container_of(node, path)
    keys = _keys(container, node, path)
    children = container.children_of(node, keys)
    assert children is not None, "a container has its own structure"
    is_bare = path == bare and container.names_fields
    subtrees = [
        _flatten(child, str(key) if is_bare else f"{path}.{key}", bare, into, arguments)
        for key, child in zip(keys, children, strict=True)
    ]
    cls = None if container.fits_class is None else node.__class__
    type_name = "" if cls is None else f"{cls.__module__}:{cls.__qualname__}"
    return Tree(container.kind, keys, tuple(subtrees), type_name=type_name, cls=cls)


def _keys(container: Container, node: Any, path: str) -> tuple[Key, ...]:
    keys = tuple(container.keys_of(node))
    for key in keys:
        if not isinstance(cast("object", key), (str, int)):
            raise InputError(
                f"'{path}'", got=f"the dict key {key!r}", allowed="str or int keys", fix="rename the keys to texts"
            )
    return keys


def leaf_paths(tree: Tree) -> list[tuple[Key, ...]]:
    """The keys that lead to each tensor, in depth-first order.

    Two tensors may share a dotted name, such as those at ``("a", "b")`` and ``("a.b",)``, but never a path.
    """
    if tree.kind == "tensor":
        return [()]
    children = zip(tree.keys, tree.children, strict=True) if tree.children else ()
    return [(key, *rest) for key, child in children for rest in leaf_paths(child)]


def unique_names(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Number the names that repeat an earlier one; all others stay.

    Args:
        names: in a fixed order, on which the numbers depend.
        taken: names that none of the result may have.
    """
    used = set(taken)
    given = used.union(names)
    unique: list[str] = []
    for name in names:
        candidate = name
        number = 1
        while candidate in used or (candidate != name and candidate in given):
            candidate = f"{name}_{number}"
            number += 1
        used.add(candidate)
        unique.append(candidate)
    return unique


def unflatten(tree: Tree, leaves: Sequence[Any], arguments: Mapping[str, Any] | None = None) -> Any:
    """Put tensors back into the structure that they were taken from.

    Args:
        tree: the structure.
        leaves: its tensors.
        arguments: the call's, by parameter, for a result that holds one; None stands for one that is missing here.

    Raises:
        ArtifactError: a class that the result needs is not imported here.
    """
    return _unflatten(tree, iter(leaves), arguments or {})


def _unflatten(node: Tree, leaves: Iterator[Any], arguments: Mapping[str, Any]) -> Any:
    if node.kind == "tensor":
        return next(leaves)
    if node.kind == "constant":
        return node.value
    if node.kind == "argument":
        return arguments.get(node.value)
    children = [_unflatten(child, leaves, arguments) for child in node.children]
    container = CONTAINERS[node.kind]
    cls = node.cls
    if cls is None and container.fits_class is not None:
        cls = find_class(node.type_name, container)
    return container.rebuild(cls, node.keys, children)


def container_classes(tree: Tree) -> list[type]:
    """The classes that rebuild the containers of a structure, without those that can't be found by their names."""
    found = [cls for child in tree.children for cls in container_classes(child)]
    container = CONTAINERS.get(tree.kind)
    if container is not None and container.fits_class is not None:
        with suppress(ArtifactError):
            found.append(find_class(tree.type_name, container))
    return found


def refill(value: Any, tree: Tree, leaves: Sequence[Any]) -> None:
    """Put other contents into a container, and into those in it that have a place in both.

    Args:
        value: the container.
        tree: the structure that it shall have.
        leaves: the tensors that it shall have.
    """
    _refilled(value, tree, iter(leaves))


def can_refill(value: Any, tree: Tree) -> bool:
    """Whether a container is of a kind that changes, so that it can get this structure."""
    container = CONTAINERS[tree.kind]
    return container.refill is not None and container.can_refill(value)


def _refilled(value: Any, tree: Tree, leaves: Iterator[Any]) -> Any:
    """The value with other contents; a new one where it can't have them."""
    container = CONTAINERS.get(tree.kind)
    if container is None:
        return _unflatten(tree, leaves, {})
    children = [
        _refilled(_child(container, value, key), child, leaves)
        for key, child in zip(tree.keys, tree.children, strict=True)
    ]
    cls = tree.cls or (None if container.fits_class is None else find_class(tree.type_name, container))
    if container.refill is None or value is None or not container.can_refill(value):
        return container.rebuild(cls, tree.keys, children)
    container.refill(value, cls, tree.keys, children)
    return value


def _child(container: Container, value: Any, key: Key) -> Any:
    """The part of a container under a key; None without one, and where parts are made only when they are read."""
    if value is None or container.kind == "registered":
        return None
    keys = list(container.keys_of(value)) if container.matches(value) else []
    children = container.children_of(value, keys) if key in keys else None
    return None if children is None else children[keys.index(key)]


def argument_at(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], path: Sequence[Key]
) -> Any:
    """Find a container among a call's arguments.

    Args:
        parameters: the signature's.
        args, kwargs: a call that `bind` accepts.
        path: the parameter's name, and the keys below it.
    """
    value = assign(parameters, args, kwargs)[str(path[0])]
    tree = next(parameter.tree for parameter in parameters if parameter.name == path[0])
    for key in path[1:]:
        assert tree is not None, "a path leads to a container of the sample's"
        place = tree.keys.index(key)
        value = _children(tree, value, str(key))[place]
        tree = tree.children[place]
    return value


def bind(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], leaf_kind: LeafKind = TENSORS
) -> list[Any]:
    """Match a call with the captured parameters.

    Args:
        parameters: the signature's.
        args, kwargs: the call.
        leaf_kind: the kind of values that stand where the sample had tensors.

    Returns:
        the tensors in the signature's order.

    Raises:
        InputError: a missing or extra argument, another structure, or another constant than was captured.
    """
    _refuse_packed_call(parameters, args, kwargs, leaf_kind)
    given = assign(parameters, args, kwargs)
    leaves: list[Any] = []
    for parameter in parameters:
        if parameter.name not in given:
            _check_omitted(parameter, parameters)
        elif parameter.tree is not None and parameter.kind == "var_keyword":  # callers know these by their own names
            items = _children(parameter.tree, given[parameter.name], parameter.name)
            for key, tree, item in zip(parameter.tree.keys, parameter.tree.children, items, strict=True):
                _match(tree, item, str(key), leaves.append, leaf_kind)
        elif parameter.tree is not None:
            _match(parameter.tree, given[parameter.name], parameter.name, leaves.append, leaf_kind)
        else:
            _check_default(parameter, given[parameter.name])
    return leaves


def _refuse_packed_call(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], leaf_kind: LeafKind
) -> None:
    """Refuse a list, tuple or Mapping that holds the arguments themselves, and say how to unpack it."""
    first = next((one for one in parameters if one.kind == "positional"), None)
    if len(args) != 1 or kwargs or first is None or first.tree is None or first.tree.kind != "tensor":
        return
    packed = args[0]
    if not isinstance(packed, (list, tuple, Mapping)) or leaf_kind.fits(packed):
        return
    values = cast("Iterable[Any]", packed.values() if isinstance(packed, Mapping) else packed)
    if not any(map(leaf_kind.fits, values)):
        return
    stars = "**" if isinstance(packed, Mapping) else "*"
    raise InputError(
        f"input '{first.name}'",
        name=first.name,
        got=_short(cast("object", packed)),
        allowed=leaf_kind.allowed,
        fix=f"unpack it: module({stars}inputs)",
    )


def _check_omitted(parameter: Parameter, parameters: Sequence[Parameter]) -> None:
    """An argument may be left out if the model's default is the value that the engine was built for."""
    tree = parameter.tree
    if tree is None or (
        parameter.optional and tree.kind == "constant" and _same_constant(parameter.default, tree.value)
    ):
        return
    raise InputError(
        f"argument '{parameter.name}'",
        name=parameter.name,
        got="no value",
        allowed=f"the arguments {_names(parameters)}",
        fix=f"pass {parameter.name}" + (f"={tree.value!r}" if tree.kind == "constant" else ""),
    )


def _check_default(parameter: Parameter, value: Any) -> None:
    """An argument that sample_input left out may be passed if it says what the model's default says."""
    name = parameter.name
    default = f"its default {parameter.default!r}" if parameter.optional else "its default"
    if parameter.kind.startswith("var_"):
        if not value:
            return
        default = "a call without it"
        name, value = next(iter(value.items())) if parameter.kind == "var_keyword" else (f"*{name}", value)
    elif parameter.optional and _same_constant(value, parameter.default):
        return
    raise InputError(
        f"argument '{name}'",
        name=name,
        got=_short(value),
        allowed=f"{default}, since it was not in sample_input",
        fix="redeploy with it in sample_input",
    )


def _names(parameters: Sequence[Parameter]) -> str:
    return ", ".join(parameter.name for parameter in parameters if parameter.tree is not None) or "no arguments"


def assign(parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter name -> value, as Python itself would bind the call."""
    positional = [parameter.name for parameter in parameters if parameter.kind == "positional"]
    rest = {parameter.kind: parameter.name for parameter in parameters if parameter.kind.startswith("var_")}
    given: dict[str, Any] = dict(zip(positional, args, strict=False))
    extra = tuple(args[len(positional) :])
    if "var_positional" in rest:
        given[rest["var_positional"]] = extra
    elif extra:
        raise InputError(
            "call",
            got=f"{len(args)} positional arguments",
            allowed=f"at most {len(positional)}: {', '.join(positional)}",
            fix="leave out the rest",
        )
    named = {parameter.name for parameter in parameters if not parameter.kind.startswith("var_")}
    unknown: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in named and name in given:
            raise InputError(f"argument '{name}'", name=name, got="two values", allowed="one", fix="pass it once")
        (given if name in named else unknown)[name] = value
    if "var_keyword" in rest:
        given[rest["var_keyword"]] = unknown
    elif unknown:
        name = next(iter(unknown))
        allowed = f"one of {', '.join(parameter.name for parameter in parameters)}"
        fix = did_you_mean(name, [parameter.name for parameter in parameters], given) or "leave it out"
        raise InputError(f"argument '{name}'", name=name, got="an unknown name", allowed=allowed, fix=fix)
    return given


def _match(tree: Tree, value: Any, path: str, add: Callable[[Any], None], leaf_kind: LeafKind) -> None:
    if tree.kind == "tensor":
        if not leaf_kind.fits(value):
            got = kind_of(value)
            raise InputError(f"input '{path}'", name=path, got=got, allowed=leaf_kind.allowed, fix=leaf_kind.fix)
        add(value)
    elif tree.kind == "constant":
        if not _same_constant(value, tree.value):
            raise InputError(
                f"argument '{path}'",
                name=path,
                got=_cut_around_difference(_short(value), repr(tree.value)),
                allowed=f"{_cut_around_difference(repr(tree.value), _short(value))}, a constant of the engine",
                fix="redeploy with this value in sample_input, or make it a tensor",
            )
    else:
        for key, child, item in zip(tree.keys, tree.children, _children(tree, value, path), strict=True):
            _match(child, item, f"{path}.{key}", add, leaf_kind)


def _children(tree: Tree, value: Any, path: str) -> list[Any]:
    children = CONTAINERS[tree.kind].children_of(value, tree.keys)
    if children is not None:
        return children
    kind = with_article(tree.type_name.rpartition(":")[2] or tree.kind)
    expected = f"{kind} of {len(tree.keys)}: {', '.join(map(str, tree.keys))}"
    raise InputError(
        f"argument '{path}'",
        name=path,
        got=_short(value),
        allowed=expected,
        fix="pass the structure that sample_input had",
    )


def _same_constant(value: Any, constant: Any) -> bool:
    # 1, 1.0 and True are equal, but a model may do different things with them.
    if not isinstance(value, _CONSTANTS) or any(isinstance(value, t) is not isinstance(constant, t) for t in _NUMBERS):
        return False
    return bool(value == constant) or (value != value and constant != constant)


def _cut_around_difference(text: str, other: str) -> str:
    """The part of a long text in which it differs from another one."""
    if len(text) <= _LONG_TEXT:
        return text
    pairs = zip(text, other, strict=False)
    start = next((place for place, (one, two) in enumerate(pairs) if one != two), 0)
    return f"...{text[max(0, start - _LONG_TEXT // 2) : start + _LONG_TEXT // 2]}..."


def _short(value: Any) -> str:
    if is_tensor(value):
        return "a tensor"
    if isinstance(value, (list, tuple, Mapping)):
        return f"{kind_of(cast('object', value))} of {len(cast('Sequence[Any]', value))}"
    return repr(value) if isinstance(value, _CONSTANTS) else kind_of(value)
