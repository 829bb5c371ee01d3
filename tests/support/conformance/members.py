"""Attributes, items, iteration and operators of every kind of value.

Enters: a kind and what the source does with it. Leaves: the kind that comes out; uses and problems in the notes.
A room of its own because this is where a name meets the bindings.
"""

from __future__ import annotations

import ast

from tests.support.conformance.api import Call
from tests.support.conformance.kinds import ABSENT, OTHER, Kind, element, union
from tests.support.conformance.notes import Notes
from tests.support.conformance.source import Class, Function

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.BitOr: "or",
    ast.BitAnd: "and",
    ast.BitXor: "xor",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_PYTHONS_OWN = ("__class__", "__dict__", "__doc__", "__name__", "__qualname__", "__module__")


class Members(Notes):
    """What happens to a value that the source touches."""

    def attribute(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        """Read an attribute."""
        self.mention(name)
        parts = list(kind.flat())
        known = [part for part in parts if part.what not in ("other", "any", "none")]
        return union(self._attribute(node, part, name) for part in known or parts)

    def _attribute(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        if kind.what in ("api", "class", "instance"):
            return self._of_bindings(node, kind, name)
        if kind.what == "unknown":
            self.problem(node, f"annotate this: the bindings don't state what it is ({kind.name or 'no type'})")
        elif kind.what == "object":
            return self._of_object(node, kind, name)
        elif kind.what == "type":
            function = kind.ref.function(name)
            return self._method(function, None) if function else self._of_class(node, kind, name)
        elif kind.what == "module":
            return self.in_module(kind, name)
        elif kind.what == "foreign":
            return kind
        elif kind.what in ("many", "tuple", "dict"):
            return Kind("operation", name, parts=(kind,))
        elif kind.what == "typevar":
            self.touched.add(kind.ref)
            self._untracked(node, name)
        elif kind.what in ("other", "any"):
            self._untracked(node, name)
        return ABSENT if kind is ABSENT else OTHER

    def _of_bindings(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        owner = "" if kind.what == "api" else kind.name
        if name in _PYTHONS_OWN:
            return OTHER
        self.use(node, f"{owner}.{name}".lstrip("."))
        found = self.api.member(owner, name, through_class=kind.what == "class")
        if found is None:
            self.problem(node, f"{owner or 'the module'} has no '{name}'" + self._nearest(owner, name))
        return found or OTHER

    def _nearest(self, owner: str, name: str) -> str:
        known = self.api.classes[owner]["members"] if owner else self.api.names
        near = [each for each in known if each.lower().strip("_") == name.lower().strip("_")]
        return f" (but '{near[0]}')" if near else ""

    def _untracked(self, node: ast.AST, name: str) -> None:
        telling = name in self.api.telling_names and name not in self.package.own_names
        if telling or name == "api":
            self.problem(node, f"annotate this: '{name}' is TensorRT's, but what it belongs to can't be inferred")

    def _of_object(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        cls: Class = kind.ref
        declared = self.attribute_declared(cls, name)
        if declared is not None:
            return declared
        function = cls.function(name)
        if function is not None:
            method = self._method(function, kind)
            return self.result(node, method, Call()) if function.is_property else method
        return self._of_class(node, kind, name)

    def _of_class(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        cls: Class = kind.ref
        for each in cls.lineage():
            if (each.node, name) in self.learnt:
                return self.learnt[each.node, name]
        for base in cls.foreign_bases():
            if self.api.find(base, name) is not None:
                what = "instance" if kind.what == "object" else "class"
                return self._of_bindings(node, Kind(what, base), name)
        return OTHER

    def _method(self, function: Function, receiver: Kind | None) -> Kind:
        bound = receiver is not None or "classmethod" in function.decorators
        return Kind("function", function.node.name, (receiver,) if receiver else (), ref=(function, bound))

    def store(self, node: ast.AST, kind: Kind, name: str, value: Kind) -> None:
        """Assign an attribute."""
        for part in kind.flat():
            if part.what == "object":
                self.learn((part.ref.node, name), value)
            if part.what == "typevar":
                self.touched.add(part.ref)
            if part.what in ("other", "any", "typevar"):
                self._untracked(node, name)
            if part.what == "unknown":
                self.problem(node, "annotate this: the bindings don't state what it is")
            for owner in self._bindings_owner(part, name):
                self.use(node, f"{owner}.{name}")
                reason = self.api.writable(owner, name)
                member = self.api.member(owner, name) or OTHER
                if reason or (reason := self.api.mismatch(member, value)):
                    self.problem(node, reason)

    def _bindings_owner(self, kind: Kind, name: str) -> list[str]:
        if kind.what in ("instance", "class"):
            return [kind.name]
        if kind.what == "object":
            return [base for base in kind.ref.foreign_bases() if self.api.find(base, name) is not None][:1]
        return []

    def special(self, node: ast.AST, kind: Kind, name: str, arguments: int = 0) -> Kind | None:
        """Call a double-underscore method of an object; None if its class has none."""
        call = Call(positional=(OTHER,) * arguments)
        if kind.what == "instance":
            found = self.api.member(kind.name, name)
            if found is None or found.what != "method":
                return None
            self.use(node, f"{kind.name}.{name}")
            return self.api.result(found.ref, call)
        if kind.what == "object":
            function = kind.ref.function(name)
            return self.result(node, self._method(function, kind), call) if function else None
        return None

    def iterate(self, node: ast.AST, kind: Kind) -> Kind:
        """Give what a `for` over the value yields."""
        elements: list[Kind] = []
        for part in kind.flat():
            inside = element(part)
            if inside is None and part.what in ("instance", "object"):
                iterator = self.special(node, part, "__iter__")
                inside = element(iterator) if iterator else self.special(node, part, "__getitem__", 1)
                if inside is None and part.what == "instance":
                    self.problem(node, f"{part.name} can't be iterated over")
            if part.what == "unknown":
                self.problem(node, "annotate this: the bindings don't state what it is")
            if part.what == "text":
                inside = part
            elements.append(ABSENT if part is ABSENT else inside or OTHER)
        return union(elements)

    def item(self, node: ast.AST, kind: Kind, index: ast.expr) -> Kind:
        """Give what `value[index]` is."""
        return union(self._item(node, part, index) for part in kind.flat() if part.what != "none")

    def _item(self, node: ast.AST, kind: Kind, index: ast.expr) -> Kind:
        if kind.what == "tuple" and isinstance(index, ast.Constant) and isinstance(index.value, int):
            return kind.parts[index.value] if -len(kind.parts) <= index.value < len(kind.parts) else OTHER
        if kind.what in ("many", "tuple"):
            return kind if isinstance(index, ast.Slice) else element(kind) or OTHER
        if kind.what == "dict":
            return kind.parts[1]
        if kind.what == "unknown":
            self.problem(node, "annotate this: the bindings don't state what it is")
        if kind.what in ("instance", "object"):
            found = self.special(node, kind, "__getitem__", 1)
            if found is None and kind.what == "instance":
                self.problem(node, f"{kind.name} can't be indexed")
            return found or OTHER
        return ABSENT if kind is ABSENT else OTHER

    def operate(self, node: ast.AST, left: Kind, operator: ast.AST, right: Kind) -> Kind:
        """Apply a binary or comparison operator; containers add up to containers."""
        name = _OPERATORS.get(type(operator), "")
        mirrored = _MIRRORED.get(name, f"r{name}")
        if name and not self._defines(left, f"__{name}__") and not self._defines(right, f"__{mirrored}__"):
            for part in (*left.flat(), *right.flat()):
                if part.what == "instance":
                    self.problem(node, f"{part.name} has no '{name}' operator: wrap it in int()")
        return union((left, right)) if name == "add" and left.what == right.what == "many" else OTHER

    def _defines(self, kind: Kind, operator: str) -> bool:
        return any(part.what == "instance" and self.api.find(part.name, operator) for part in kind.flat())

    def result(self, node: ast.AST, method: Kind, call: Call) -> Kind:
        """Give what calling a function of the source returns."""
        raise NotImplementedError
