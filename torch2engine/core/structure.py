"""The structure of arguments and results as plain data: `Tree` and `Parameter`, which `spec` hands on.

Enters: what `tree.flatten` saw, or a manifest. Leaves: JSON-able values. Apart from `spec` only for its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Parameter", "Tree"]


@dataclass(frozen=True)
class Tree:
    """The structure of an argument or a result around its tensors.

    kind: "tensor" | "constant" | "list" | "tuple" | "dict" | "namedtuple" | "sequence" | "dataclass" | "mapping".
    keys: per child, the dict key, field name or index.
    value: the constant (None, bool, int, float or str).
    type_name: "module:qualified.name" for kinds that are rebuilt by a class.
    cls: that class where it is at hand; found by `type_name` after loading.
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

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"kind": self.kind}
        if self.kind == "constant":
            data["value"] = self.value
        if self.children:
            data["keys"] = list(self.keys)
            data["children"] = [child.to_json() for child in self.children]
        if self.type_name:
            data["type"] = self.type_name
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tree:
        return cls(
            kind=data["kind"],
            keys=tuple(data.get("keys", ())),
            children=tuple(cls.from_json(child) for child in data.get("children", ())),
            value=data.get("value"),
            type_name=data.get("type", ""),
        )


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model's forward.

    kind: "positional" | "keyword" | "var_positional" | "var_keyword" (the last two as in ``*args``, ``**kwargs``).
    tree: what the sample gave for it; None if the sample left it out, so that the model's default is fixed in.
    default: forward's own default, if `optional`.
    optional: True if forward has a default that is a constant, so that a call may be checked against it.
    """

    name: str
    kind: str
    tree: Tree | None = None
    default: Any = None
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        tree = None if self.tree is None else self.tree.to_json()
        return {
            "name": self.name,
            "kind": self.kind,
            "tree": tree,
            "default": self.default,
            "optional": self.optional,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parameter:
        tree = None if data["tree"] is None else Tree.from_json(data["tree"])
        return cls(data["name"], data["kind"], tree, data["default"], data["optional"])
