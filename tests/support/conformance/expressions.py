"""Expressions: what kind of value each one is.

Enters: an expression and the names in force. Leaves: its kind; guards such as `hasattr(engine, "name")` become flags
that the version decides. A room of its own because it knows Python's expressions and nothing of statements.
"""

from __future__ import annotations

import ast

from tests.support.conformance.api import Call
from tests.support.conformance.calls import Calls
from tests.support.conformance.kinds import ABSENT, FOREIGN, NONE, OTHER, Kind, absent, flag, many, text, truth, union
from tests.support.conformance.source import Scope, last_name


class Expressions(Calls):
    """What an expression is."""

    def kind(self, node: ast.expr | None, scope: Scope) -> Kind:
        """Infer an expression; parts that this version can't reach are left alone."""
        if node is None:
            return OTHER
        reader = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if reader is not None:
            return reader(node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child, scope)
        return OTHER

    def on_constant(self, node: ast.Constant, scope: Scope) -> Kind:
        if isinstance(node.value, str):
            return text([node.value])
        return NONE if node.value is None else OTHER

    def on_name(self, node: ast.Name, scope: Scope) -> Kind:
        self.mention(node.id)
        return scope.find(node.id) or OTHER

    def on_attribute(self, node: ast.Attribute, scope: Scope) -> Kind:
        return self.attribute(node, self.kind(node.value, scope), node.attr)

    def on_subscript(self, node: ast.Subscript, scope: Scope) -> Kind:
        value = self.kind(node.value, scope)
        self.kind(node.slice, scope)
        return self.item(node, value, node.slice)

    def on_namedexpr(self, node: ast.NamedExpr, scope: Scope) -> Kind:
        value = self.kind(node.value, scope)
        self.assign(node.target, value, scope)
        return value

    def on_starred(self, node: ast.Starred, scope: Scope) -> Kind:
        return self.kind(node.value, scope)

    def on_await(self, node: ast.Await, scope: Scope) -> Kind:
        return self.kind(node.value, scope)

    # --- guards

    def test(self, node: ast.expr, scope: Scope) -> bool | None:
        """Tell how a condition comes out in this version; None if either way."""
        kind = self.kind(node, scope)
        if kind.what == "method":
            self.problem(node, f"{kind.name.lstrip('.')} is a method, which is always true: call it")
        return truth(kind)

    def on_boolop(self, node: ast.BoolOp, scope: Scope) -> Kind:
        stops = isinstance(node.op, ast.Or)
        kinds: list[Kind] = []
        for value in node.values:
            kind = self.kind(value, scope)
            kinds.append(kind)
            if kind.what == "flag" and truth(kind) is stops:
                break
        truths = [truth(kind) for kind in kinds]
        if stops in truths:
            return flag(stops)
        if all(each is (not stops) for each in truths):
            return flag(not stops)
        # `a or b` gives b where a is false; what `and` tests is not what it gives.
        return union(kinds if stops else [kinds[-1]])

    def on_unaryop(self, node: ast.UnaryOp, scope: Scope) -> Kind:
        if not isinstance(node.op, ast.Not):
            self.kind(node.operand, scope)
            return OTHER
        value = self.test(node.operand, scope)
        return flag(None if value is None else not value)

    def on_ifexp(self, node: ast.IfExp, scope: Scope) -> Kind:
        value = self.test(node.test, scope)
        kinds: list[Kind] = []
        if value is not False:
            kinds.append(self.kind(node.body, scope))
        if value is not True:
            kinds.append(self.kind(node.orelse, scope))
        return union(kinds)

    def on_compare(self, node: ast.Compare, scope: Scope) -> Kind:
        left = self.kind(node.left, scope)
        for operator, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.kind(comparator, scope)
            if isinstance(operator, (ast.Is, ast.IsNot)) and right == NONE and absent(left):
                return flag(isinstance(operator, ast.Is))
            self.operate(node, left, operator, right)
            left = right
        return OTHER

    def on_binop(self, node: ast.BinOp, scope: Scope) -> Kind:
        return self.operate(node, self.kind(node.left, scope), node.op, self.kind(node.right, scope))

    # --- containers

    def on_sequence(self, node: ast.List | ast.Set, scope: Scope) -> Kind:
        return many(union(self._one(each, scope) for each in node.elts))

    on_list = on_set = on_sequence

    def _one(self, node: ast.expr, scope: Scope) -> Kind:
        kind = self.kind(node, scope)
        return self.iterate(node, kind) if isinstance(node, ast.Starred) else kind

    def on_tuple(self, node: ast.Tuple, scope: Scope) -> Kind:
        kinds = tuple(self._one(each, scope) for each in node.elts)
        if any(isinstance(each, ast.Starred) for each in node.elts):
            return many(union(kinds))
        return Kind("tuple", parts=kinds)

    def on_dict(self, node: ast.Dict, scope: Scope) -> Kind:
        keys, values = [], []
        for key, value in zip(node.keys, node.values, strict=True):
            given = self.kind(value, scope)
            whole = given.what == "dict" and key is None
            keys.append(given.parts[0] if whole else self.kind(key, scope))
            values.append(given.parts[1] if whole else given if key is not None else OTHER)
        return Kind("dict", parts=(union(keys), union(values)))

    def on_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, scope: Scope) -> Kind:
        inner = self._generators(node.generators, scope)
        return many(OTHER if inner is None else self.kind(node.elt, inner))

    on_listcomp = on_setcomp = on_generatorexp = on_comprehension

    def on_dictcomp(self, node: ast.DictComp, scope: Scope) -> Kind:
        inner = self._generators(node.generators, scope)
        parts = (OTHER, OTHER) if inner is None else (self.kind(node.key, inner), self.kind(node.value, inner))
        return Kind("dict", parts=parts)

    def _generators(self, generators: list[ast.comprehension], scope: Scope) -> Scope | None:
        """Give the names inside a comprehension; None if a guard keeps this version out."""
        inner = Scope(scope)
        for each in generators:
            self.assign(each.target, self.iterate(each.iter, self.kind(each.iter, inner)), inner)
            if any(self.test(condition, inner) is False for condition in each.ifs):
                return None
        return inner

    def on_lambda(self, node: ast.Lambda, scope: Scope) -> Kind:
        inner = Scope(scope, {each.arg: OTHER for each in (*node.args.posonlyargs, *node.args.args)})
        return Kind("callable", parts=(self.kind(node.body, inner),))

    # --- calls

    def on_call(self, node: ast.Call, scope: Scope) -> Kind:
        name = node.func.id if isinstance(node.func, ast.Name) and scope.find(node.func.id) is None else ""
        if name in ("hasattr", "getattr", "setattr") and len(node.args) >= 2:
            return self._by_name(node, name, scope)
        last = last_name(node.func)
        if last == "cast" and len(node.args) == 2:
            owner = self.function.owner if self.function else None
            value = self.kind(node.args[1], scope)
            declared = self.annotation(node.args[0], scope, owner)
            return declared if declared.tracked else value
        if name == "super":
            return self._super()
        called = self.kind(node.func, scope)
        call = self._arguments(node, scope)
        given = self.builtin(node, name or last, call) if called in (OTHER, FOREIGN) else None
        return self.call(node, called, call) if given is None else given

    def _arguments(self, node: ast.Call, scope: Scope) -> Call:
        kinds = [(each, self.kind(each, scope)) for each in node.args]
        named = [(each.arg, self.kind(each.value, scope)) for each in node.keywords]
        return Call(
            positional=tuple(kind for each, kind in kinds if not isinstance(each, ast.Starred)),
            keywords=tuple((name, kind) for name, kind in named if name is not None),
            open_positional=any(isinstance(each, ast.Starred) for each, _ in kinds),
            open_keywords=any(name is None for name, _ in named),
        )

    def _super(self) -> Kind:
        owner = self.function.owner if self.function else None
        bases = owner.bases if owner else ()
        become = {"class": "instance", "type": "object"}
        return union(Kind(become[b.what], b.name, ref=b.ref) for b in bases if b.what in become)

    def _by_name(self, node: ast.Call, builtin: str, scope: Scope) -> Kind:
        """hasattr, getattr and setattr: an attribute whose name is a value."""
        value, asked = self.kind(node.args[0], scope), self.kind(node.args[1], scope)
        rest = [self.kind(each, scope) for each in node.args[2:]]
        if not value.tensorrt:
            for name in asked.ref if asked.what == "text" else ():
                if builtin != "hasattr":
                    return self.attribute(node, value, name) if builtin == "getattr" and not rest else OTHER
            return ABSENT if value is ABSENT else OTHER
        if asked.what != "text":
            if builtin == "getattr" and rest:
                return Kind("unknown", "an attribute by a name that can't be read from the source")
            if builtin != "hasattr":
                self.problem(node, "the attribute's name can't be read from the source")
            return OTHER
        names = sorted(name for name in asked.ref if name)
        if builtin == "setattr":
            for name in names:
                self.store(node, value, name, rest[0])
            return OTHER
        if builtin == "getattr" and not rest:
            return union(self.attribute(node, value, name) for name in names)
        return self._guarded(node, value, names, rest)

    def _guarded(self, node: ast.Call, value: Kind, names: list[str], default: list[Kind]) -> Kind:
        """hasattr, or getattr with a default: each name needs to exist in some version only."""
        found: list[Kind | None] = []
        answers: set[bool | None] = set()
        for part in (part for part in value.flat() if part.what in ("api", "class", "instance")):
            owner = "" if part.what == "api" else part.name
            for name in names:
                path = f"{owner}.{name}".lstrip(".")
                answers.add(self.guard(node, path))
                self.use(node, path)
                found.append(self.api.member(owner, name, through_class=part.what == "class"))
        if default:
            missing = [ABSENT if kind == NONE else kind for kind in default] if None in found else []
            return union([*(kind for kind in found if kind is not None), *missing])
        return flag(answers.pop() if len(answers) == 1 else None)

    def assign(self, target: ast.expr, value: Kind, scope: Scope) -> None:
        """Give a value to a name, attribute, item or pattern of them."""
        raise NotImplementedError
