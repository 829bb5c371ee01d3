"""The road is short: from deploy() a reader reaches the three libraries in at most three files, by following calls."""

from __future__ import annotations

import ast
import heapq
from collections.abc import Iterator
from pathlib import Path

MOST_HOPS = 3
MOST_LINES = 45
ENDS = ("torch.onnx.export", "InferenceSession", "build_serialized_network")

Place = tuple[str, str]  # module, top-level name in it


class Room:
    """One file: its top-level names, and what its imports stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self.names: dict[str, ast.AST] = {}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign):
                self.names.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        self.imports = dict(imports(tree))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What each imported name stands for, e.g. ("nn", "torch.nn"); imports inside functions count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, alias.name if alias.asname else name


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute chain; what comes before a call's dot is "?"."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def used(node: ast.AST) -> Iterator[str]:
    """Every name and chain that code uses; code in a string (a child process's first line) is code."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Name, ast.Attribute)):
            yield dotted(inner)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and "import " in inner.value:
            try:
                code = ast.parse(inner.value)
            except SyntaxError:
                continue
            yield from (name for _, name in imports(code))


class Road:
    """A package as a graph: a use inside a file costs nothing, a use of another file is a hop."""

    def __init__(self, package: Path) -> None:
        paths = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py"]
        self.rooms = {
            ".".join(path.relative_to(package.parent).with_suffix("").parts): Room(ast.parse(path.read_text("utf-8")))
            for path in paths
        }

    def hops(self, start: Place) -> dict[str, int]:
        """Hops to everything that is used from `start` on, by full name; a method is known by its own name too."""
        found: dict[str, int] = {}
        best: dict[Place, int] = {start: 0}
        queue = [(0, start)]
        while queue:
            hops, place = heapq.heappop(queue)
            if hops > best[place]:
                continue
            for name in self._uses(place):
                for word in (name, name.rpartition(".")[2]):
                    found[word] = min(hops, found.get(word, hops))
                there = self._place(name)
                if there is None:
                    continue
                cost = hops + (there[0] != place[0])
                if cost < best.get(there, cost + 1):
                    best[there] = cost
                    heapq.heappush(queue, (cost, there))
        return found

    def _uses(self, place: Place) -> Iterator[str]:
        module, name = place
        room = self.rooms[module]
        for chain in used(room.names[name]):
            first, _, rest = chain.partition(".")
            if first in room.names:
                yield f"{module}.{first}"
            else:
                yield ".".join(filter(None, (room.imports.get(first, first), rest)))

    def _place(self, name: str) -> Place | None:
        """Where in the package a full name leads."""
        words = name.split(".")
        prefixes = (".".join(words[:length]) for length in range(1, len(words)))
        module = next((prefix for prefix in prefixes if prefix in self.rooms), None)
        if module is None:
            return None
        inside = name.removeprefix(f"{module}.").partition(".")[0]
        return (module, inside) if inside in self.rooms[module].names else None


def test_libraries_are_at_most_three_hops_from_deploy(repository: Path) -> None:
    """Following deploy()'s calls, torch's exporter, ONNX Runtime and TensorRT's builder are at most three files off."""
    hops = Road(repository / "torch2engine").hops(("torch2engine.deploy", "deploy"))
    assert {end: hops[end] for end in ENDS} == {end: min(hops[end], MOST_HOPS) for end in ENDS}


def test_deploy_fits_on_a_screen(repository: Path) -> None:
    """deploy's body, the road itself, is at most 45 lines, those of comment alone not counted."""
    text = (repository / "torch2engine" / "deploy.py").read_text("utf-8")
    tree = ast.parse(text)
    *overloads, deploy = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert all(dotted(node.decorator_list[0]) == "overload" for node in overloads)
    assert deploy.name == "deploy"
    assert ast.get_docstring(deploy) is not None
    body = deploy.body[1:]
    lines = text.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    assert sum(not line.lstrip().startswith("#") for line in lines) <= MOST_LINES


def test_deploy_room_holds_the_road_and_nothing_else(repository: Path) -> None:
    """No helper hides beside the list of steps."""
    room = Room(ast.parse((repository / "torch2engine" / "deploy.py").read_text("utf-8")))
    assert set(room.names) == {"__all__", "deploy"}


PLANTED = {
    "start": "from p.one import go\nimport torch as T\ndef deploy():\n  helper()\ndef helper():\n  T.near(), go()\n",
    "one": "from p import two\nCODE = 'from p.two import child; child()'\ndef go():\n    return two.further, CODE\n",
    "two": "from p.three import Class\ndef further():\n  Class()\ndef child(): 0\ndef unused(): torch.never()\n",
    "three": "class Class:\n    def method(self):\n        from p.four import last\n        last()\n",
    "four": "import torch.onnx\ndef last():\n    torch.onnx.export(builder().build_serialized_network)\n",
}


def test_hops_are_counted_by_files_along_calls(tmp_path: Path) -> None:
    """A road of four files is found to be too long, through aliases, classes, local imports and code in strings."""
    (tmp_path / "p").mkdir()
    for name, code in PLANTED.items():
        (tmp_path / "p" / f"{name}.py").write_text(code)
    hops = Road(tmp_path / "p").hops(("p.start", "deploy"))
    assert hops["torch.near"] == 0
    assert (hops["p.one.go"], hops["p.two.further"], hops["p.three.Class"], hops["p.four.last"]) == (0, 1, 2, 3)
    assert hops["p.two.child"] == 1
    assert (hops["torch.onnx.export"], hops["build_serialized_network"]) == (4, 4)
    assert "torch.never" not in hops
