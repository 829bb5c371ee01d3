"""What one walk over the source under one version of the bindings remembers, and how it reads annotations.

Enters: a `Package` and an `Api`. Leaves: `Notes`, the base of the walker: uses, problems, guards, statements reached,
and what attributes and results turned out to be. A room of its own because everything else in the walk writes here.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.conformance.api import Api
from tests.support.conformance.kinds import ANY, API, NONE, OTHER, Kind, many, telling, union
from tests.support.conformance.source import Class, Function, Module, Package, Scope, expression_of, last_name

_MANY = (
    *("list", "set", "frozenset", "deque", "Sequence", "MutableSequence", "Iterable", "Iterator", "Collection", "Set"),
    *("Generator", "AbstractSet", "ValuesView", "KeysView"),
)
_DICT = ("dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict")
_INNER = ("Final", "ClassVar", "Annotated", "Required", "NotRequired", "ReadOnly")


@dataclass(frozen=True, order=True)
class Note:
    """A place in the source and what is said about it."""

    path: str
    line: int
    expression: str
    message: str


@dataclass
class Findings:
    """What a walk found.

    uses: (path, line, "Class.member") of every use that was checked.
    guards: for every member that a guard asks for, whether any version has it.
    reached: the statements that this version can reach.
    """

    uses: set[tuple[str, int, str]] = field(default_factory=set)
    problems: set[Note] = field(default_factory=set)
    guards: dict[Note, bool] = field(default_factory=dict)
    reached: set[ast.stmt] = field(default_factory=set)


class Notes:
    """State of a walk.

    Args:
        package: the source.
        api: the version that is walked.
        versions: all of them.
    """

    def __init__(self, package: Package, api: Api, versions: Sequence[Api]) -> None:
        self.package = package
        self.api = api
        self.versions = versions
        self.found = Findings()
        self.module: Module = package.door
        self.function: Function | None = None
        self.scopes: dict[str, Scope] = {}
        self.functions: dict[ast.AST, Function] = {}
        self.classes: dict[ast.AST, Class] = {}
        # What attributes and unannotated results were in the last walk, and what they are in this one.
        self.learnt: dict[Any, Kind] = {}
        self.learning: dict[Any, Kind] = {}
        self.mentioned: set[str] = set()
        self.defined: set[Function] = set()
        self.touched: set[Any] = set()
        self.poured: dict[Any, Note] = {}

    def note(self, node: ast.AST, message: str) -> Note:
        """Name a place in the file that is being walked."""
        shown = " ".join(ast.unparse(node).split())
        shown = shown if len(shown) <= 90 else shown[:87] + "..."
        return Note(self.module.path, getattr(node, "lineno", 0), shown, message)

    def problem(self, node: ast.AST, message: str) -> None:
        """Remember that something is wrong."""
        self.found.problems.add(self.note(node, message))

    def use(self, node: ast.AST, member: str) -> None:
        """Remember that a use of the bindings was checked."""
        self.found.uses.add((self.module.path, getattr(node, "lineno", 0), member))

    def guard(self, node: ast.AST, member: str) -> bool | None:
        """Remember that a guard asks for a member; tell whether this version has it, None if all or none have it."""
        answers = [each.has(member) for each in self.versions]
        self.found.guards[self.note(node, f"no version has {member}")] = any(answers)
        return self.api.has(member) if any(answers) and not all(answers) else None

    def mention(self, name: str) -> None:
        """Remember that a name is used: a private function is walked only if somebody names it."""
        self.mentioned.add(name)

    def learn(self, key: Any, kind: Kind) -> None:
        """Add to what an attribute or a result may be."""
        kind = telling(kind)
        self.learning[key] = union((self.learning[key], kind)) if key in self.learning else kind

    # --- annotations

    def annotation(self, node: ast.expr | None, scope: Scope, owner: Class | None = None) -> Kind:
        """Read an annotation; "other" where it is absent or says nothing about TensorRT or the source's classes."""
        if node is None:
            return OTHER
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                return self.annotation(expression_of(node.value), scope, owner)
            return NONE if node.value is None else OTHER
        if isinstance(node, ast.BinOp):
            return union((self.annotation(node.left, scope, owner), self.annotation(node.right, scope, owner)))
        if isinstance(node, ast.Subscript):
            return self._generic(node, scope, owner)
        return self._named(node, scope, owner)

    def _named(self, node: ast.expr, scope: Scope, owner: Class | None) -> Kind:
        last = last_name(node)
        if last == "Any":
            return ANY
        if last == "Self" and owner is not None:
            return Kind("object", owner.node.name, ref=owner)
        kind = self.static(node, scope)
        if kind.what == "alias":
            return kind.ref
        if kind.what == "type":
            return Kind("object", kind.name, ref=kind.ref)
        return kind if kind.what == "typevar" else OTHER

    def _generic(self, node: ast.Subscript, scope: Scope, owner: Class | None) -> Kind:
        outer = last_name(node.value)
        if outer == "Literal":
            return OTHER
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        endless = isinstance(inner[-1], ast.Constant) and inner[-1].value is ...
        parts = tuple(self.annotation(each, scope, owner) for each in inner if not isinstance(each, ast.List))
        if outer in _MANY or (outer == "tuple" and endless):
            return many(parts[0])
        if outer == "tuple":
            return Kind("tuple", parts=parts)
        if outer in _DICT and len(parts) == 2:
            return Kind("dict", parts=parts)
        if outer in ("Union", "Optional"):
            return union((*parts, NONE) if outer == "Optional" else parts)
        if outer == "Callable":
            return Kind("callable", parts=parts[-1:])
        if outer in _INNER:
            return parts[0]
        if outer == "type" and parts[0].what in ("instance", "object"):
            return Kind({"instance": "class", "object": "type"}[parts[0].what], parts[0].name, ref=parts[0].ref)
        return self._named(node.value, scope, owner)

    def static(self, node: ast.expr, scope: Scope) -> Kind:
        """Follow a dotted name without calling it a use."""
        if isinstance(node, ast.Name):
            return scope.find(node.id) or OTHER
        if isinstance(node, ast.Attribute):
            owner = self.static(node.value, scope)
            return self.in_module(owner, node.attr) if owner.what == "module" else OTHER
        return OTHER

    def in_module(self, module: Kind, name: str) -> Kind:
        """Find a name in a module of the package."""
        found = self.module_scope(module.name).find(name)
        deeper = f"{module.name}.{name}"
        return found or (Kind("module", deeper) if deeper in self.package.modules else OTHER)

    def module_scope(self, name: str) -> Scope:
        """The names of a module, filled as its body is walked."""
        return self.scopes.setdefault(name, Scope())

    def alias(self, name: str) -> Kind:
        """What an annotation alias of the door stands for in this version."""
        return Kind("alias", name, ref=self.api.instance(name))

    # --- functions

    def parameter(self, function: Function, each: ast.arg) -> Kind:
        """What a parameter is inside its function."""
        kind = self.annotation(each.annotation, function.scope, function.owner)
        if kind is not ANY and each.annotation is not None:
            return kind
        if self._is_api(function.module, each.arg):
            return API
        inherited = self._overridden(function, each)
        return inherited or Kind("typevar", "any", ref=(function.node, each.arg))

    def _is_api(self, module: Module, name: str) -> bool:
        # Only the door holds the bindings before they are a TensorRT value, and there it calls them `api`.
        return name == "api" and module is self.package.door

    def _overridden(self, function: Function, each: ast.arg) -> Kind | None:
        if function.owner is None or each not in function.positional:
            return None
        for base in function.owner.foreign_bases():
            method = self.api.override(base, function.node.name)
            index = function.positional.index(each) - 1
            if method is not None and 0 <= index < len(method.signatures[0].parameters):
                written = method.signatures[0].parameters[index].type
                return self.api.kind(written) if written else None
        return None

    def attribute_declared(self, cls: Class, name: str) -> Kind | None:
        """What a class says of an attribute; None if nothing that counts."""
        if cls.module is self.package.door and cls.node.name == "TensorRT":
            special = {"api": API, "is_rtx": Kind("flag", ref=self.api.rtx), "has": Kind("has")}
            if name in special:
                return special[name]
        for each in cls.lineage():
            if name in each.annotations:
                kind = self.annotation(each.annotations[name], each.scope, each)
                return kind if kind.tracked else None
        return None
