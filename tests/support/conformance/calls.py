"""Calls: of the bindings, of the source's functions and classes, of containers and of the builtins that matter.

Enters: the kind of what is called and of its arguments. Leaves: the kind of the result; misfits in the notes.
A room of its own because argument counts, keywords and type variables are settled here.
"""

from __future__ import annotations

import ast

from tests.support.conformance.api import Call
from tests.support.conformance.kinds import ANY, NONE, OTHER, Kind, element, flag, many, union
from tests.support.conformance.members import Members
from tests.support.conformance.source import Class, Function


class Calls(Members):
    """What a call gives."""

    def call(self, node: ast.Call, called: Kind, call: Call) -> Kind:
        """Call whatever it is."""
        return union(self._call(node, part, call) for part in called.flat() if part.what != "none")

    def _call(self, node: ast.Call, called: Kind, call: Call) -> Kind:
        if called.what == "method":
            self._fits(node, called.name.lstrip("."), self.api.misfit(called.ref, call))
            return self.api.result(called.ref, call)
        if called.what == "class":
            self._fits(node, called.name, self.api.misfit(self.api.constructor(called.name), call))
            return Kind("instance", called.name)
        if called.what in ("instance", "plain"):
            self.problem(node, f"{called.name} can't be called")
        if called.what == "unknown":
            self.problem(node, f"annotate this: the bindings don't state what it is ({called.name or 'no type'})")
        if called.what == "function":
            return self.result(node, called, call)
        if called.what == "type":
            return self._construct(node, called, call)
        if called.what == "callable":
            return called.parts[0] if called.parts else OTHER
        if called.what == "operation":
            return self._operation(called.parts[0], called.name, call)
        if called.what == "has":
            return self._has(node, call)
        return called if called.what == "absent" else OTHER

    def _fits(self, node: ast.Call, name: str, reason: str) -> None:
        self.use(node, f"{name}()")
        if reason:
            self.problem(node, f"{name}: {reason}")

    def _has(self, node: ast.Call, call: Call) -> Kind:
        asked = call.positional[0] if call.positional else OTHER
        if asked.what != "text":
            self.problem(node, "the member's name can't be read from the source")
            return OTHER
        answers = {self.guard(node, name) for name in asked.ref}
        return flag(answers.pop() if len(answers) == 1 else None)

    # --- functions and classes of the source

    def result(self, node: ast.AST, method: Kind, call: Call) -> Kind:
        """Give what calling a function of the source returns, with its type variables put in."""
        function, bound = method.ref
        self.mention(function.node.name)
        variables: dict[object, Kind] = {}
        self._pour(node, function, bound and function.is_bound, call, variables)
        returns = self.annotation(function.node.returns, function.scope, function.owner)
        if function.node.returns is None or ANY in _deep(returns):
            returns = self.learnt.get(function.node, OTHER)
        returns = _substitute(returns, variables)
        if function.decorators & {"contextmanager", "asynccontextmanager"}:
            return Kind("context", parts=(element(returns) or OTHER,))
        return returns

    def _pour(self, node: ast.AST, function: Function, bound: bool, call: Call, variables: dict[object, Kind]) -> None:
        """Hand the arguments to the parameters: bind type variables, and find values that lose their class."""
        positional = function.positional[1:] if bound else function.positional
        pairs = list(zip(positional, call.positional, strict=False))
        named = {each.arg: each for each in function.parameters}
        pairs += [(named[name], kind) for name, kind in call.keywords if name in named]
        for each, actual in pairs:
            declared = self.parameter(function, each)
            _bind(declared, actual, variables)
            if declared.what == "typevar" and declared.ref and actual.tensorrt:
                message = f"annotate '{each.arg}' of {function.node.name}(): got given TensorRT objects and uses them"
                self.poured[declared.ref] = self.note(node, message)
            if reason := self.api.mismatch(declared, actual):
                self.problem(node, f"{function.node.name}: '{each.arg}' {reason}")

    def _construct(self, node: ast.Call, called: Kind, call: Call) -> Kind:
        cls: Class = called.ref
        made = Kind("object", called.name, ref=cls)
        self.mention(called.name)
        function = cls.function("__init__")
        bases = cls.foreign_bases()
        if function is not None:
            self.result(node, Kind("function", "__init__", (made,), ref=(function, True)), call)
        elif bases:
            self._fits(node, bases[0], self.api.misfit(self.api.constructor(bases[0]), call))
        else:
            self._fill(node, cls, call)
        return made

    def _fill(self, node: ast.Call, cls: Class, call: Call) -> None:
        """Hand a dataclass's arguments to its fields."""
        names = [name for each in reversed(cls.lineage()) for name in each.fields]
        for name, actual in (*zip(names, call.positional, strict=False), *call.keywords):
            declared = self.attribute_declared(cls, name)
            self.learn((cls.node, name), actual)
            if declared is None:
                continue
            if reason := self.api.mismatch(declared, actual):
                self.problem(node, f"{cls.node.name}: '{name}' {reason}")
            if declared.what == actual.what == "flag" and declared.ref != actual.ref:
                self.problem(node, f"{cls.node.name}: '{name}' is not what this version is")

    # --- containers and builtins

    def _operation(self, container: Kind, name: str, call: Call) -> Kind:
        given = union(call.positional[1:2])
        if container.what == "dict":
            key, value = container.parts
            if name in ("get", "pop", "setdefault"):
                return union((value, given if len(call.positional) > 1 else NONE))
            views = {"items": many(Kind("tuple", parts=(key, value))), "keys": many(key), "values": many(value)}
            return views.get(name, container if name in ("copy", "__or__") else OTHER)
        if name in ("pop", "popleft", "__next__", "__getitem__"):
            return element(container) or OTHER
        return container if name in ("copy", "union", "difference", "intersection", "__iter__") else OTHER

    def builtin(self, node: ast.Call, name: str, call: Call) -> Kind | None:
        """Call a builtin; None if it is one that the checker doesn't follow."""
        first = call.positional[0] if call.positional else OTHER
        if name in ("list", "tuple", "set", "frozenset", "sorted", "reversed", "iter", "deque"):
            return many(self.iterate(node, first)) if call.positional else many(OTHER)
        if name == "enumerate":
            return many(Kind("tuple", parts=(OTHER, self.iterate(node, first))))
        if name == "zip":
            return many(Kind("tuple", parts=tuple(self.iterate(node, each) for each in call.positional)))
        if name in ("map", "filter") and len(call.positional) > 1:
            inside = self.iterate(node, call.positional[1])
            return many(inside if name == "filter" else self.call(node, first, Call(positional=(inside,))))
        if name == "next":
            return union((self.iterate(node, first), *call.positional[1:]))
        if name in ("min", "max"):
            return union(call.positional) if len(call.positional) > 1 else self.iterate(node, first)
        if name in ("dict", "MappingProxyType", "OrderedDict"):
            return first if first.what == "dict" else None
        if name in ("len", "int", "float"):
            return self._protocol(node, name, first)
        if name == "type" and first.what in ("instance", "object"):
            what = "class" if first.what == "instance" else "type"
            return Kind(what, first.name, ref=first.ref)
        return None

    def _protocol(self, node: ast.Call, name: str, kind: Kind) -> Kind:
        wanted = {"len": ("__len__",), "int": ("__int__", "__index__"), "float": ("__float__", "__index__")}[name]
        for part in kind.flat():
            if part.what == "instance" and all(self.special(node, part, each) is None for each in wanted):
                self.problem(node, f"{part.name} has no {wanted[0]}")
        return OTHER


def _deep(kind: Kind) -> list[Kind]:
    return [kind, *(inner for part in kind.parts for inner in _deep(part))]


def _variable(kind: Kind) -> object:
    return kind.ref or kind.name


def _bind(declared: Kind, actual: Kind, variables: dict[object, Kind]) -> None:
    """Find what a declared kind's type variables are, given the actual kind."""
    if declared.what == "typevar":
        key = _variable(declared)
        variables[key] = union((variables[key], actual)) if key in variables else actual
    elif declared.what == "union":
        rest = union(part for part in actual.flat() if part.what != "none" or NONE not in declared.parts)
        for part in declared.parts:
            _bind(part, rest, variables)
    elif declared.what in ("many", "dict", "callable") and declared.what == actual.what:
        for inner, given in zip(declared.parts, actual.parts, strict=False):
            _bind(inner, given, variables)
    elif declared.what == "many" and actual.what == "tuple":
        _bind(declared.parts[0], union(actual.parts), variables)


def _substitute(kind: Kind, variables: dict[object, Kind]) -> Kind:
    """Put type variables' values in."""
    if kind.what == "typevar":
        return variables.get(_variable(kind), OTHER)
    if kind.what == "union":
        return union(_substitute(part, variables) for part in kind.parts)
    if not kind.parts or kind.what in ("function", "operation"):
        return kind
    return Kind(kind.what, kind.name, tuple(_substitute(part, variables) for part in kind.parts), kind.ref)
