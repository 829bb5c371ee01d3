"""Statements: walk every module, class and function as one version of the bindings would run them.

Enters: a package and an API. Leaves: `Findings`. Branches that the version can't take are left out, so a use behind
`if rt.is_rtx:` is checked against TensorRT-RTX alone. A room of its own because order, branches and joins live here.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from tests.support.conformance.expressions import Expressions
from tests.support.conformance.kinds import API, FOREIGN, OTHER, TRUE, Kind, many, union
from tests.support.conformance.notes import Findings
from tests.support.conformance.source import Class, Function, FunctionNode, Scope, last_name

_LONGEST_SEARCH = 12


class Walker(Expressions):
    """The walk of one version; `walk()` is all that is called from outside."""

    def walk(self) -> Findings:
        """Walk the package until nothing new is learnt, then once more from scratch with what was learnt."""
        for _ in range(_LONGEST_SEARCH):
            self._restart()
            self._everything(live_only=False)
            if self.learning == self.learnt:
                break
        self.mentioned = set()
        self._restart(keep=True)
        self._everything(live_only=True)
        self.found.problems.update(note for ref, note in self.poured.items() if ref in self.touched)
        return self.found

    def _restart(self, *, keep: bool = False) -> None:
        self.found, self.defined, self.touched, self.poured = Findings(), set(), set(), {}
        self.learnt, self.learning = (self.learnt if keep else self.learning), {}

    def _everything(self, *, live_only: bool) -> None:
        for module in self.package.modules.values():
            self.module, self.function = module, None
            self.block(module.tree.body, self.module_scope(module.name))
        walked: set[Function] = set()
        # A function that is walked may be the first that names another, which waits until then.
        while waiting := [f for f in self.defined - walked if not live_only or self._is_live(f.node.name)]:
            for function in sorted(waiting, key=lambda each: each.node.lineno):
                walked.add(function)
                self._inside(function)

    def _is_live(self, name: str) -> bool:
        # A private function that the source names nowhere is called from outside, as torch calls Module._apply.
        private = name.startswith("_") and not name.endswith("__") and name in self.package.read_names
        return not private or name in self.mentioned

    def _inside(self, function: Function) -> None:
        outer = self.module, self.function
        self.module, self.function = function.module, function
        scope = Scope(function.scope)
        arguments = function.node.args
        for each in function.parameters:
            scope.names[each.arg] = self.parameter(function, each)
        if arguments.vararg:
            scope.names[arguments.vararg.arg] = many(self.annotation(arguments.vararg.annotation, function.scope))
        if arguments.kwarg:
            kind = self.annotation(arguments.kwarg.annotation, function.scope)
            scope.names[arguments.kwarg.arg] = Kind("dict", parts=(OTHER, kind))
        if function.owner and function.is_bound and function.positional:
            what = "type" if "classmethod" in function.decorators else "object"
            scope.names[function.positional[0].arg] = Kind(what, function.owner.node.name, ref=function.owner)
        self.block(function.node.body, scope)
        self.module, self.function = outer

    # --- blocks

    def block(self, body: Sequence[ast.stmt], scope: Scope) -> bool:
        """Walk statements in order; tell whether the end is reached."""
        for statement in body:
            self.found.reached.add(statement)
            if not self._statement(statement, scope):
                return False
        return True

    def _statement(self, node: ast.stmt, scope: Scope) -> bool:
        handler = getattr(self, f"do_{type(node).__name__.lower()}", None)
        if handler is not None:
            return handler(node, scope) is not False
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child, scope)
        return not isinstance(node, (ast.Raise, ast.Break, ast.Continue))

    def _branches(self, bodies: Sequence[Sequence[ast.stmt]], scope: Scope) -> bool:
        """Walk alternatives, each from the same names, and join what they leave."""
        ends: list[Scope] = []
        for body in bodies:
            branch = scope.copy()
            if self.block(body, branch):
                ends.append(branch)
        self._join(scope, ends)
        return bool(ends)

    def _join(self, scope: Scope, ends: Sequence[Scope]) -> None:
        names = dict.fromkeys(name for end in ends for name in end.names)
        for name in names:
            scope.names[name] = union(end.names[name] for end in ends if name in end.names)

    def do_if(self, node: ast.If, scope: Scope) -> bool:
        value = self.test(node.test, scope)
        bodies = {True: [node.body], False: [node.orelse], None: [node.body, node.orelse]}[value]
        return self._branches(bodies, scope)

    def do_assert(self, node: ast.Assert, scope: Scope) -> bool:
        return self.test(node.test, scope) is not False

    def do_for(self, node: ast.For | ast.AsyncFor, scope: Scope) -> bool:
        return self._loop(node, scope)

    do_asyncfor = do_for

    def do_while(self, node: ast.While, scope: Scope) -> bool:
        if self.test(node.test, scope) is False:
            return self.block(node.orelse, scope)
        return self._loop(node, scope)

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, scope: Scope) -> bool:
        # Twice: the second round sees what the first one assigned.
        for _ in range(2):
            turn = scope.copy()
            if isinstance(node, ast.While):
                self.test(node.test, turn)
            else:
                self.assign(node.target, self.iterate(node.iter, self.kind(node.iter, turn)), turn)
            self.block(node.body, turn)
            self._join(scope, [scope.copy(), turn])
        self.block(node.orelse, scope)
        return True

    def do_with(self, node: ast.With | ast.AsyncWith, scope: Scope) -> bool:
        for item in node.items:
            entered = self._enter(item.context_expr, self.kind(item.context_expr, scope))
            if item.optional_vars is not None:
                self.assign(item.optional_vars, entered, scope)
        return self.block(node.body, scope)

    do_asyncwith = do_with

    def _enter(self, node: ast.expr, kind: Kind) -> Kind:
        if kind.what == "context":
            return kind.parts[0]
        found = self.special(node, kind, "__enter__")
        if kind.what == "instance" and found is None:
            self.problem(node, f"{kind.name} can't be used in a with statement")
        return kind if kind.what == "instance" else found or OTHER

    def do_try(self, node: ast.Try, scope: Scope) -> bool:
        start, tried = scope.copy(), scope.copy()
        alive = self.block(node.body, tried)
        ends = [tried] if alive and self.block(node.orelse, tried) else []
        for handler in node.handlers:
            caught = start.copy()
            self._join(caught, [start, tried])
            self.kind(handler.type, caught)
            if self.block(handler.body, caught):
                ends.append(caught)
        self._join(scope, ends)
        return self.block(node.finalbody, scope) and bool(ends)

    do_trystar = do_try

    def do_match(self, node: ast.Match, scope: Scope) -> bool:
        self.kind(node.subject, scope)
        for case in node.cases:
            self.kind(case.guard, scope)
        return self._branches([*(case.body for case in node.cases), []], scope)

    # --- assignments and results

    def do_assign(self, node: ast.Assign, scope: Scope) -> None:
        value = self.kind(node.value, scope)
        if isinstance(node.value, ast.Call) and last_name(node.value.func) == "TypeVar":
            value = Kind("typevar", ast.unparse(node.targets[0]))
        for target in node.targets:
            self.assign(target, value, scope)

    def do_annassign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if ast.unparse(node.annotation).endswith("TypeAlias") and isinstance(node.target, ast.Name):
            name = node.target.id
            bindings = self.module is self.package.door and name in self.package.aliases
            meaning = Kind("alias", name, ref=self.annotation(node.value, scope))
            scope.names[name] = self.alias(name) if bindings else meaning
            return
        value = self.kind(node.value, scope)
        owner = self.function.owner if self.function else None
        declared = self.annotation(node.annotation, scope, owner)
        if node.value is not None and (reason := self.api.mismatch(declared, value)):
            self.problem(node, f"the annotation is wrong: it {reason}")
        self.assign(node.target, declared if declared.tracked else value, scope)

    def do_augassign(self, node: ast.AugAssign, scope: Scope) -> None:
        reading = ast.copy_location(ast.parse(ast.unparse(node.target), mode="eval").body, node)
        result = self.operate(node, self.kind(reading, scope), node.op, self.kind(node.value, scope))
        self.assign(node.target, result, scope)

    def assign(self, target: ast.expr, value: Kind, scope: Scope) -> None:
        """Give a value to a name, attribute, item or pattern of them."""
        if isinstance(target, ast.Name):
            scope.names[target.id] = API if value == OTHER and self._is_api(self.module, target.id) else value
        elif isinstance(target, ast.Attribute) and target.attr == "__class__" and value.what == "class":
            # A network gives every layer the base class; the code gives it its own.
            self.assign(target.value, Kind("instance", value.name), scope)
        elif isinstance(target, ast.Attribute):
            self.store(target, self.kind(target.value, scope), target.attr, value)
        elif isinstance(target, ast.Subscript):
            self.kind(target.value, scope)
            self.kind(target.slice, scope)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, many(OTHER), scope)
        elif isinstance(target, (ast.Tuple, ast.List)):
            tuples = list(value.flat())
            pairwise = all(each.what == "tuple" and len(each.parts) == len(target.elts) for each in tuples)
            inside = OTHER if pairwise else self.iterate(target, value)
            for index, each in enumerate(target.elts):
                part = union(one.parts[index] for one in tuples) if pairwise else inside
                self.assign(each, part, scope)

    def do_return(self, node: ast.Return, scope: Scope) -> bool:
        value = self.kind(node.value, scope)
        if self.function is not None and node.value is not None:
            function = self.function
            self.learn(function.node, value)
            declared = self.annotation(function.node.returns, function.scope, function.owner)
            if reason := self.api.mismatch(declared, value):
                self.problem(node, f"the result's annotation is wrong: it {reason}")
        return False

    # --- definitions and imports

    def do_functiondef(self, node: FunctionNode, scope: Scope, owner: Class | None = None) -> None:
        for decorator in node.decorator_list:
            self.kind(decorator, scope)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.kind(default, scope)
        function = self.functions.setdefault(node, Function(self.module, node, owner, scope))
        function.scope = scope
        self.defined.add(function)
        if owner is not None:
            owner.functions[node.name] = function
        else:
            scope.names[node.name] = Kind("function", node.name, ref=(function, False))

    do_asyncfunctiondef = do_functiondef

    def do_classdef(self, node: ast.ClassDef, scope: Scope) -> None:
        bases = tuple(self.kind(base, scope) for base in node.bases)
        cls = self.classes.setdefault(node, Class(self.module, node, scope))
        cls.scope, cls.bases = scope, bases
        inner = Scope(scope)
        for statement in node.body:
            self.found.reached.add(statement)
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.do_functiondef(statement, scope, cls)
            else:
                self._statement(statement, inner)
        for name, kind in inner.names.items():
            self.learn((node, name), kind)
        scope.names[node.name] = Kind("type", node.name, ref=cls)
        self._overrides(cls)

    def _overrides(self, cls: Class) -> None:
        """Hold a subclass of a class of the bindings to its base's methods, which TensorRT calls by position."""
        for base in cls.foreign_bases():
            for name, function in cls.functions.items():
                method = self.api.override(base, name)
                if method is None:
                    if not name.startswith("_") and name not in self.package.read_names:
                        message = f"overrides nothing: {base} has no '{name}', and nobody calls it"
                        self.problem(function.node, message)
                elif name != "__init__":
                    self.use(function.node, f"{base}.{name}")
                    if not any(_accepts(function, len(each.parameters)) for each in method.signatures):
                        listed = " or ".join(map(str, method.signatures))
                        self.problem(function.node, f"{base}.{name} is called with {listed}")

    def do_import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == self.package.name:
                name = alias.name if alias.asname else self.package.name
                scope.names[alias.asname or self.package.name] = Kind("module", name)
            else:
                scope.names[alias.asname or alias.name.split(".")[0]] = FOREIGN

    def do_importfrom(self, node: ast.ImportFrom, scope: Scope) -> None:
        for alias in node.names:
            kind = FOREIGN
            if (node.module or "").split(".")[0] == self.package.name:
                self.mention(alias.name)
                kind = self.in_module(Kind("module", node.module or ""), alias.name)
            typing_flag = alias.name == "TYPE_CHECKING"
            scope.names[alias.asname or alias.name] = TRUE if typing_flag else kind


def _accepts(function: Function, count: int) -> bool:
    """Whether a method takes that many positional arguments after self."""
    arguments = function.node.args
    most = len(function.positional) - 1
    least = most - len(arguments.defaults)
    required_keywords = [d for d in arguments.kw_defaults if d is None]
    return not required_keywords and least <= count and (count <= most or arguments.vararg is not None)
