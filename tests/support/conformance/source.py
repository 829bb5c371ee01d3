"""The package under test as syntax: modules, classes, functions, and what annotations say.

Enters: a folder of Python files. Leaves: `Package`, whose parts the inference walks; nothing is imported or run. A room
of its own because the syntax is read once and walked once per version of the bindings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from tests.support.conformance.kinds import Kind

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def last_name(node: ast.expr) -> str:
    """What stands behind the last dot of a dotted name; this is asked for every call and annotation."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ast.unparse(node).rpartition(".")[2]


@cache
def expression_of(text: str) -> ast.expr:
    """The expression in an annotation that is written as a string."""
    return ast.parse(text, mode="eval").body


class Scope:
    """Names in force; a copy per branch, a parent per enclosing function."""

    def __init__(self, parent: Scope | None = None, names: dict[str, Kind] | None = None) -> None:
        self.parent = parent
        self.names = names if names is not None else {}

    def find(self, name: str) -> Kind | None:
        """Look a name up, outwards."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None

    def copy(self) -> Scope:
        """A scope in which a branch may assign without touching this one."""
        return Scope(self.parent, dict(self.names))


def _statements(parent: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node, and no expressions: these are most of a tree."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(parent, name, ()):
            yield node
            yield from _statements(node)


@dataclass(eq=False)
class Module:
    """One file; `name` as imported, `path` as reported."""

    name: str
    path: str
    tree: ast.Module

    @cached_property
    def imports(self) -> frozenset[str]:
        """Every dotted name that it imports, anywhere."""
        found: set[str] = set()
        for node in _statements(self.tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        return frozenset(found)


@dataclass(eq=False)
class Function:
    """A function or method; `scope` is where it was defined."""

    module: Module
    node: FunctionNode
    owner: Class | None
    scope: Scope

    @cached_property
    def decorators(self) -> frozenset[str]:
        """The decorators' last names."""
        calls = (d.func if isinstance(d, ast.Call) else d for d in self.node.decorator_list)
        return frozenset(last_name(call) for call in calls)

    @property
    def parameters(self) -> list[ast.arg]:
        """The parameters that take one argument each, in order."""
        arguments = self.node.args
        return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]

    @property
    def positional(self) -> list[ast.arg]:
        """The parameters that a positional argument can reach."""
        return [*self.node.args.posonlyargs, *self.node.args.args]

    @property
    def is_bound(self) -> bool:
        """Whether a call through an object gives it that object (or its class) first."""
        return self.owner is not None and "staticmethod" not in self.decorators

    @property
    def is_property(self) -> bool:
        """Whether an attribute access calls it."""
        return bool(self.decorators & {"property", "cached_property"})


@dataclass(eq=False)
class Class:
    """A class; `bases` are the kinds of its bases."""

    module: Module
    node: ast.ClassDef
    scope: Scope
    bases: tuple[Kind, ...] = ()
    functions: dict[str, Function] = field(default_factory=dict)

    @cached_property
    def annotations(self) -> dict[str, ast.expr]:
        """Annotated attributes: of the class body, and of self in its methods."""
        found: dict[str, ast.expr] = {}
        for node in ast.walk(self.node):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                if isinstance(node.target.value, ast.Name) and node.target.value.id == "self":
                    found.setdefault(node.target.attr, node.annotation)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node in self.node.body:
                found[node.target.id] = node.annotation
        return found

    @property
    def fields(self) -> list[str]:
        """A dataclass's or NamedTuple's own fields in order."""
        return [n.target.id for n in self.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]

    def lineage(self) -> list[Class]:
        """The class and its bases in the source, nearest first."""
        above = [base.ref for base in self.bases if base.what == "type"]
        return [self, *(line for base in above for line in base.lineage())]

    def function(self, name: str) -> Function | None:
        """Find a method, inherited ones included."""
        return next((cls.functions[name] for cls in self.lineage() if name in cls.functions), None)

    def foreign_bases(self) -> list[str]:
        """The bindings' classes that it derives from."""
        return [base.name for cls in self.lineage() for base in cls.bases if base.what == "class"]


class Package:
    """The modules of a package that can hold an object of TensorRT: the door and what imports it, through others too.

    Args:
        folder: the package's folder; its name is the package's.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            shown = path.relative_to(folder.parent).as_posix()
            self.modules[name] = Module(name, shown, ast.parse(path.read_text(encoding="utf-8"), shown))
        door = f"{self.name}.trt"
        self.door = self.modules.get(f"{door}.bindings", self.modules[door])
        self.modules = self._behind_the_door()

    def _behind_the_door(self) -> dict[str, Module]:
        inside = {self.door.name}
        while found := {n for n, module in self.modules.items() if module.imports & inside} - inside:
            inside |= found
        return {name: module for name, module in self.modules.items() if name in inside}

    @cached_property
    def aliases(self) -> dict[str, int]:
        """The names that stand for classes of the bindings in annotations, with their lines."""
        return {
            node.target.id: node.lineno
            for node in self.door.tree.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and ast.unparse(node.annotation).endswith("TypeAlias")
            and node.value is not None
            and ast.unparse(node.value).endswith("Any")
        }

    @cached_property
    def own_names(self) -> frozenset[str]:
        """Names of functions, methods, classes and attributes that the source itself defines."""
        names: set[str] = set()
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    names.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names.add(node.target.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    names.update({node.attr} if ast.unparse(node.value) == "self" else ())
        return frozenset(names)

    @cached_property
    def read_names(self) -> frozenset[str]:
        """Names that the source reads, bare or as attributes."""
        nodes = [node for module in self.modules.values() for node in ast.walk(module.tree)]
        bare = {node.id for node in nodes if isinstance(node, ast.Name)}
        return frozenset(bare | {node.attr for node in nodes if isinstance(node, ast.Attribute)})
