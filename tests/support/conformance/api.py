"""The API of one version of the bindings: classes, members, overloads, as read from a dump.

Enters: the JSON that `dump.py` writes. Leaves: `Api`, which answers what a class has, what a call gives and why it
would not fit. A room of its own because it knows pybind11's docstrings and nothing of the source that is checked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.conformance.kinds import ABSENT, NONE, OTHER, Kind, many, union

_SCALARS = ("int", "str", "bool", "float", "bytes")
_PLAIN = ("list", "tuple", "dict", "memoryview", "numpy.ndarray", "type")
_ITERABLES = ("list", "List", "Sequence", "Iterator", "Iterable", "Set", "set")


@dataclass(frozen=True)
class Call:
    """The arguments of a call: positional kinds, keyword kinds, and whether * or ** hides some."""

    positional: tuple[Kind, ...] = ()
    keywords: tuple[tuple[str, Kind], ...] = ()
    open_positional: bool = False
    open_keywords: bool = False


@dataclass(frozen=True)
class Parameter:
    """One parameter of an overload; `stars` as written before its name."""

    name: str
    type: str
    stars: int
    optional: bool

    @property
    def by_keyword(self) -> bool:
        """pybind11 calls a parameter without a name argN and takes no keyword for it."""
        return not self.stars and not re.fullmatch(r"arg\d+", self.name)


@dataclass(frozen=True)
class Overload:
    """One signature of a function."""

    parameters: tuple[Parameter, ...]
    returns: str

    def __str__(self) -> str:
        return "(" + ", ".join("*" * p.stars + p.name + ("=" if p.optional else "") for p in self.parameters) + ")"


@dataclass(frozen=True)
class Method:
    """A function of the bindings; `bound` if self is already given."""

    owner: str
    name: str
    overloads: tuple[Overload, ...]
    bound: bool

    @property
    def signatures(self) -> tuple[Overload, ...]:
        """The overloads as the caller sees them."""
        return tuple(Overload(o.parameters[1:], o.returns) if self.bound else o for o in self.overloads)


class Api:
    """One version's API.

    Args:
        title: e.g. "tensorrt 10.16.1.11", as reports name it.
        rtx: whether it is TensorRT-RTX.
        dump: what `dump.py` wrote.
    """

    def __init__(self, title: str, rtx: bool, dump: Mapping[str, Any]) -> None:
        self.title = title
        self.rtx = rtx
        self.names: Mapping[str, Any] = dump["names"]
        self.classes: Mapping[str, Any] = dump["classes"]

    def class_called(self, name: str) -> str | None:
        """Find a class by its path, or by its last name if only one nested class has it."""
        if name in self.classes:
            return name
        nested = [path for path in self.classes if path.endswith("." + name)]
        return nested[0] if len(nested) == 1 else None

    def lineage(self, name: str) -> list[str]:
        """A class and its bases, nearest first."""
        return [name, *(line for base in self.classes[name]["bases"] for line in self.lineage(base))]

    def is_subclass(self, name: str, of: str) -> bool:
        """Tell whether a class is another or derives from it."""
        return of in self.lineage(name)

    def find(self, owner: str, name: str) -> Mapping[str, Any] | None:
        """Find a member of a class, inherited ones included; of the module if the owner is ""."""
        if not owner:
            return self.names.get(name)
        for cls in self.lineage(owner):
            if name in self.classes[cls]["members"]:
                return self.classes[cls]["members"][name]
        return None

    def has(self, path: str) -> bool:
        """Tell whether "Class", "function" or "Class.member" (nested: "A.B.member") exists."""
        owner, _, name = path.rpartition(".")
        if owner and owner not in self.classes:
            return False
        return self.find(owner, name) is not None

    def member(self, owner: str, name: str, *, through_class: bool = False) -> Kind | None:
        """Give the kind of a member; None if there is none or it can't be read."""
        found = self.find(owner, name)
        if found is None or not found.get("read", True):
            return None
        if found["kind"] == "class":
            return Kind("class", found["type"])
        if found["kind"] == "method":
            bound = bool(owner) and not through_class and not found["static"]
            return Kind("method", f"{owner}.{name}", ref=Method(owner, name, self.overloads(found["overloads"]), bound))
        return self.kind(found["type"])

    def override(self, owner: str, name: str) -> Method | None:
        """The method that TensorRT calls in a subclass; some exist in their class's docstring alone."""
        for cls in self.lineage(owner):
            found = self.classes[cls]["members"].get(name)
            if found is not None and found["kind"] == "method":
                return Method(owner, name, self.overloads(found["overloads"]), bound=True)
            if name in self.classes[cls]["hooks"]:
                return Method(owner, name, self.overloads(self.classes[cls]["hooks"][name]), bound=True)
        return None

    def constructor(self, owner: str) -> Method:
        """The constructor of a class, self already given."""
        found = self.find(owner, "__init__")
        return Method(owner, "__init__", self.overloads(found["overloads"]) if found else (), bound=True)

    def writable(self, owner: str, name: str) -> str:
        """Say why an attribute can't be assigned; "" if it can."""
        found = self.find(owner, name)
        if found is None:
            return f"{owner} has no '{name}'"
        if found["kind"] != "property" or not found["write"]:
            return f"{owner}.{name} can't be assigned"
        return ""

    def overloads(self, listed: Sequence[Mapping[str, Any]]) -> tuple[Overload, ...]:
        """Read dumped overloads."""
        return tuple(
            Overload(tuple(Parameter(**parameter) for parameter in each["parameters"]), each["returns"])
            for each in listed
        )

    def kind(self, written: str) -> Kind:
        """Read a type as docstrings spell it, e.g. ``list[Dims]`` or ``nvinfer1::IRuntimeCache``."""
        plain = re.sub(r"\b(?:\w+::)+(\w+)", lambda found: self._from_cpp(found[1]), written)
        try:
            return self._read(ast.parse(plain, mode="eval").body)
        except SyntaxError:
            return Kind("unknown", written)

    def _from_cpp(self, name: str) -> str:
        return next((known for known in (name, name[1:]) if known in self.classes), name)

    def _read(self, node: ast.expr) -> Kind:
        written = ast.unparse(node)
        if written in self.classes:
            return Kind("instance", written)
        if written == "None":
            return NONE
        if written in _SCALARS:
            return Kind("plain", written)
        if written in _PLAIN:
            return OTHER
        if isinstance(node, ast.BinOp):
            return union((self._read(node.left), self._read(node.right)))
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            parts = tuple(self._read(each) for each in inner)
            if outer in _ITERABLES:
                return many(parts[0])
            if outer == "Optional":
                return union((parts[0], NONE))
            if outer in ("tuple", "Tuple", "dict", "Dict"):
                return Kind(outer.lower(), parts=parts)
        return Kind("unknown", written)

    def misfit(self, method: Method, call: Call) -> str:
        """Say why no overload takes a call; "" if one does, or if the bindings don't state any."""
        if not method.signatures:
            return ""
        reasons = [self._misfit(overload, call) for overload in method.signatures]
        if "" in reasons:
            return ""
        if len(reasons) == 1:
            return reasons[0]
        return "no overload fits: " + "; ".join(f"{o}: {r}" for o, r in zip(method.signatures, reasons, strict=True))

    def result(self, method: Method, call: Call) -> Kind:
        """Give what a call returns: the results of every overload that takes it."""
        fitting = [o for o in method.signatures if not self._misfit(o, call)] or list(method.signatures)
        return union(self.kind(overload.returns) for overload in fitting) if fitting else Kind("unknown", method.name)

    def _misfit(self, overload: Overload, call: Call) -> str:
        plain = [p for p in overload.parameters if not p.stars]
        bare = next((i for i, p in enumerate(overload.parameters) if p.stars == 1), len(plain))
        ordered = plain[:bare]
        takes_rest = any(p.stars == 1 and p.name for p in overload.parameters)
        if len(call.positional) > len(ordered) and not takes_rest:
            return f"takes {len(ordered)} positional arguments {overload}, not {len(call.positional)}"
        given = dict(zip((p.name for p in ordered), call.positional, strict=False))
        for name, kind in call.keywords:
            if not any(p.name == name and p.by_keyword for p in plain):
                if any(p.stars == 2 for p in overload.parameters):
                    continue
                return f"takes no keyword '{name}' {overload}"
            if name in given:
                return f"takes '{name}' once {overload}"
            given[name] = kind
        for each in plain:
            hidden = call.open_keywords or (call.open_positional and each in ordered)
            if each.name not in given and not each.optional and not hidden:
                return f"needs '{each.name}' {overload}"
        return self._wrong_type(plain, given)

    def _wrong_type(self, parameters: Sequence[Parameter], given: Mapping[str, Kind]) -> str:
        for each in parameters:
            actual = given.get(each.name, OTHER)
            if problem := self.mismatch(self.kind(each.type), actual):
                return f"'{each.name}' {problem}"
        return ""

    def mismatch(self, declared: Kind, actual: Kind) -> str:
        """Say why a value of one class can't stand where another is declared; "" if it can or nobody knows."""
        wanted = [part.name for part in declared.flat() if part.what == "instance"]
        came = [part.name for part in actual.flat() if part.what == "instance"]
        if not wanted or not came:
            return ""
        wrong = [name for name in came if not any(self.is_subclass(name, of) for of in wanted)]
        return f"is {wrong[0]}, not {' or '.join(wanted)}" if wrong else ""

    @cached_property
    def telling_names(self) -> frozenset[str]:
        """Member names that only TensorRT has, in all likelihood: those with an underscore inside."""
        members = (name for cls in self.classes.values() for name in cls["members"])
        return frozenset(name for name in members if "_" in name.strip("_") and not name.startswith("_"))

    def instance(self, name: str) -> Kind:
        """The kind of an object of that class; "absent" if this version lacks the class."""
        found = self.class_called(name)
        return ABSENT if found is None else Kind("instance", found)
