"""The structure of arguments and results as plain data: `Tree` and `Parameter`.

Enters: the structure that `pytree.flatten` found, or a manifest. Leaves: frozen values, and the rules of their JSON
form. Separate from `spec` because structures know nothing of tensors, dtypes and axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch2engine.core.containers import CONTAINERS
from torch2engine.core.json_rules import (
    BOOLEAN,
    TEXT,
    Items,
    Object,
    Optional,
    Plain,
    SchemaError,
    check_names,
    field_error,
    is_object,
    plain,
    word,
)

__all__ = ["CONSTANT", "PARAMETER_JSON", "TREE_JSON", "Parameter", "Tree"]

_PARAMETER_KINDS = ("positional", "keyword", "var_positional", "var_keyword")
_NON_FINITE = ("nan", "inf", "-inf")
_DEEPEST = 64


@dataclass(frozen=True)
class Tree:
    """The structure of an argument or a result around its tensors.

    kind: "tensor", "constant", the name of a row in `containers`, e.g. "dict", or "argument": in a result, the very
        object that the caller passed.
    keys: for each child the dict key, field name or index.
    value: the constant (None, bool, int, float or str); the parameter's name for an argument.
    type_name: "module:qualified.name" of the class that rebuilds the container; "" for list, tuple and dict.
    cls: that class where it is at hand; after loading it is found by `type_name`.
    """

    kind: str
    keys: tuple[str | int, ...] = ()
    children: tuple[Tree, ...] = ()
    value: Any = None
    type_name: str = ""
    cls: type | None = field(default=None, compare=False, repr=False)

    def leaves(self) -> int:
        """The number of tensors below."""
        return 1 if self.kind == "tensor" else sum(child.leaves() for child in self.children)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model's forward.

    kind: "positional", "keyword", "var_positional" (``*args``) or "var_keyword" (``**kwargs``).
    tree: the structure of its sample; None if the sample left it out, so that the model's default is fixed in.
    default: forward's own default, if `optional`.
    optional: True if forward has a default that is a constant, so that a call may be checked against it.
    """

    name: str
    kind: str
    tree: Tree | None = None
    default: Any = None
    optional: bool = False


def _check_constant(value: object, where: str) -> None:
    if is_object(value):  # NaN and infinities; see `encode_non_finite`
        text = check_names(value, where, ("float",))["float"]
        word(_NON_FINITE).check(text, f"{where}.float")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise field_error(value, where, "null, true, false, a number or a string")


CONSTANT = Plain(_check_constant)
_ARRAY = Items(Plain(lambda value, where: None))
_KEYS = Items(plain(lambda value: isinstance(value, (str, int)), "a string or an int"))


class _TreeRule:
    """A `Tree` in a manifest: {"kind"}, then "value" of a constant, or "keys", "children" and "type" of a container."""

    def check(self, value: object, where: str) -> None:
        self._check(value, where, depth=1)

    def _check(self, value: object, where: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise SchemaError(f"a signature nested more than {_DEEPEST} levels deep")
        members = check_names(value, where)
        word(("tensor", "constant", "argument", *CONTAINERS)).check(members.get("kind"), f"{where}.kind")
        check_names(members, where, _tree_names(members))
        if "value" in members:
            CONSTANT.check(members["value"], f"{where}.value")
        if "type" in members:
            TEXT.check(members["type"], f"{where}.type")
        keys = members.get("keys", [])
        children = members.get("children", [])
        _ARRAY.check(keys, f"{where}.keys")
        _ARRAY.check(children, f"{where}.children")
        if len(keys) != len(children):
            raise field_error(keys, f"{where}.keys", f"one key for each of {len(children)} children")
        _KEYS.check(keys, f"{where}.keys")
        for index, child in enumerate(children):
            self._check(child, f"{where}.children[{index}]", depth + 1)

    def encode(self, value: Tree) -> dict[str, Any]:
        data: dict[str, Any] = {"kind": value.kind}
        if value.kind in ("constant", "argument"):
            data["value"] = value.value
        if value.children:
            data["keys"] = list(value.keys)
            data["children"] = [self.encode(child) for child in value.children]
        if value.type_name:
            data["type"] = value.type_name
        return data

    def decode(self, value: Any) -> Tree:
        return Tree(
            kind=value["kind"],
            keys=tuple(value.get("keys", ())),
            children=tuple(self.decode(child) for child in value.get("children", ())),
            value=value.get("value"),
            type_name=value.get("type", ""),
        )


def _tree_names(members: dict[str, Any]) -> tuple[str, ...]:
    """The names that a tree of this kind must have: keys and children come together, a type where there is one."""
    if members["kind"] == "tensor":
        return ("kind",)
    if members["kind"] in ("constant", "argument"):
        return ("kind", "value")
    inner = ("keys", "children") if "keys" in members or "children" in members else ()
    return ("kind", *inner, "type") if "type" in members else ("kind", *inner)


TREE_JSON = _TreeRule()
PARAMETER_JSON = Object(
    Parameter,
    {
        "name": TEXT,
        "kind": word(_PARAMETER_KINDS),
        "tree": Optional(TREE_JSON),
        "default": CONSTANT,
        "optional": BOOLEAN,
    },
)
