"""Which tests reach a line of the package: a map that one run of the tests leaves in `build/reach`.

Enters: the repository. Leaves: for a line, the tests that reach it, with the seconds that each takes. Apart from
`mutant_laboratory`, which runs them.

The map renews itself. Test files that have changed since are run again under the recorder, and these alone. Where a
file of the package has changed, the recorded lines are found again by their text.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reach_recorder import CHILD_PROCESS, PACKAGE

__all__ = ["FAR", "PASSED", "ReachMap", "RecordedTest", "lines_that_show", "moved_lines", "test_files"]

RECORDER = Path(__file__).with_name("reach_recorder.py")
# Tests of the project itself, and tests of what this machine may lack.
LEFT_OUT = {"gpu", "gpu2", "project"}
# Exit statuses of pytest.
PASSED = 0
A_TEST_FAILED = 1
FAR = 2


@dataclass(frozen=True)
class RecordedTest:
    """A test that passed while it was recorded.

    Args:
        name: as pytest has it, e.g. "tests/core/test_axis.py::test_a[1]".
        seconds: without its fixtures.
        fixtures: their keys in the map.
        reached: file -> the lines that the test and its fixtures reach, as bits of a number.
    """

    name: str
    seconds: float
    fixtures: tuple[str, ...]
    reached: Mapping[str, int]

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]

    @property
    def starts_processes(self) -> bool:
        """Whether it, or a fixture of it, starts a process."""
        return CHILD_PROCESS in self.reached

    def reaches(self, file: str, lines: Iterable[int]) -> bool:
        """Whether it reaches one of the lines."""
        bits = self.reached.get(file, 0)
        return any(bits >> line & 1 for line in lines)


def test_files(root: Path) -> list[str]:
    """The test files that need no GPU and are no tests of the project itself."""
    paths = [path.relative_to(root) for path in (root / "tests").rglob("test_*.py")]
    return sorted(str(path) for path in paths if not LEFT_OUT & set(path.parts))


class ReachMap:
    """The map of one tree.

    Args:
        root: the repository.

    Attributes:
        sources: the package's files, as they were when this map was made.
        imports: test file -> the modules that it imports.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "build" / "reach"
        self._place = self._folder / "map.json"
        self.sources: Mapping[str, str] = {
            str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in (root / PACKAGE).rglob("*.py")
        }
        self.imports = {file: imported_modules((root / file).read_text(encoding="utf-8")) for file in test_files(root)}
        self._digests: dict[str, str] = {}
        self._fixture_seconds: dict[str, float] = {}
        self._tests: dict[str, RecordedTest] = {}
        if self._place.exists():
            self._read(json.loads(self._place.read_text(encoding="utf-8")))

    @property
    def tests(self) -> Collection[RecordedTest]:
        """Every recorded test; lines are those of `sources`."""
        return self._tests.values()

    def seconds_of(self, fixture: str) -> float:
        """How long a fixture takes."""
        return self._fixture_seconds[fixture]

    def distance(self, file: str, test_file: str) -> int:
        """How far a file's tests are: 0 if they have its name or import it, 1 in its folder, `FAR` for others.

        A folder of the package without a folder of tests has its tests in the folder above.
        """
        path = Path(file)
        folder = Path("tests", *path.parts[1:-1])
        is_named = test_file == f"{folder}/test_{path.stem}.py"
        while not (self._root / folder).is_dir():
            folder = folder.parent
        if is_named or ".".join(path.with_suffix("").parts) in self.imports.get(test_file, ()):
            return 0
        return 1 if Path(test_file).is_relative_to(folder) else FAR

    def stale_files(self) -> list[str]:
        """The test files that are not recorded as they are now."""
        return [file for file in test_files(self._root) if self._digests.get(file) != digest(self._root / file)]

    def renew(self, processes: int, near: Collection[str] | None = None) -> None:
        """Record the test files that have changed, and forget those that have gone.

        Args:
            processes: in which the tests run.
            near: files of the package; other test files than those near to them are forgotten where they have changed.
        """
        changed = self.stale_files()
        stale = [
            test_file
            for test_file in changed
            if near is None or any(self.distance(file, test_file) < FAR for file in near)
        ]
        parts = self._folder / "parts"
        if stale:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            flags = ["-q", "-m", "not gpu", "-p", "no:cacheprovider", "-p", "benchmarks.reach_recorder"]
            spread = ["-n", str(processes), "--dist", "loadfile"]
            command = [sys.executable, "-m", "pytest", *flags, *spread, "--reach", str(parts), *stale]
            places = os.pathsep.join([str(self._root), str(Path(__file__).parents[1])])
            done = subprocess.run(
                command,
                cwd=self._root,
                env={**os.environ, "PYTHONPATH": places},
                stdout=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode not in (PASSED, A_TEST_FAILED):
                raise RuntimeError(f"pytest ended with exit status {done.returncode}: {' '.join(command)}")
        self._forget(set(changed) - set(stale))
        self.take_in(stale, parts)
        shutil.rmtree(parts, ignore_errors=True)

    def take_in(self, files: Collection[str], parts: Path) -> None:
        """Replace what the map knows of test files by what the recorder wrote, and save the map.

        Args:
            files: the test files that were run.
            parts: the recorder's folder.
        """
        old = set(test_files(self._root)) - set(files)
        self._tests = {name: test for name, test in self._tests.items() if test.file in old}
        for part in sorted(parts.glob("*.json")):
            record = json.loads(part.read_text(encoding="utf-8"))
            fixtures: dict[str, Any] = record["fixtures"]
            self._fixture_seconds |= {key: one["seconds"] / one["runs"] for key, one in fixtures.items()}
            for name, test in record["tests"].items():
                used = tuple(key for key in test["fixtures"] if key in fixtures)
                reached = as_bits([test["lines"], *(fixtures[key]["lines"] for key in used)])
                self._tests[name] = RecordedTest(name, test["seconds"], used, reached)
        self._digests = {file: found for file, found in self._digests.items() if file in old}
        self._digests |= {file: digest(self._root / file) for file in files}
        self._write()

    def _forget(self, files: Collection[str]) -> None:
        """Drop what the map knows of test files."""
        self._tests = {name: test for name, test in self._tests.items() if test.file not in files}
        self._digests = {file: found for file, found in self._digests.items() if file not in files}

    def _write(self) -> None:
        tests = {
            name: {"seconds": test.seconds, "fixtures": test.fixtures, "reached": _as_text(test.reached)}
            for name, test in self._tests.items()
        }
        record = {"digests": self._digests, "sources": self.sources, "fixtures": self._fixture_seconds, "tests": tests}
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._place.write_text(json.dumps(record), encoding="utf-8")

    def _read(self, record: Mapping[str, Any]) -> None:
        """Take a saved map, and find its lines again in files that have changed since."""
        self._digests = record["digests"]
        self._fixture_seconds = record["fixtures"]
        moved = {
            file: moved_lines(source, self.sources[file])
            for file, source in record["sources"].items()
            if file in self.sources and source != self.sources[file]
        }
        for name, test in record["tests"].items():
            known = {*self.sources, CHILD_PROCESS}
            reached = {file: int(bits, 16) for file, bits in test["reached"].items() if file in known}
            for file in reached.keys() & moved.keys():
                reached[file] = sum(1 << new for old, new in moved[file].items() if reached[file] >> old & 1)
            self._tests[name] = RecordedTest(name, test["seconds"], tuple(test["fixtures"]), reached)


def imported_modules(source: str) -> set[str]:
    """The modules that a file imports; a name that is imported from a folder may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def digest(path: Path) -> str:
    """A hash of a file, and of the recorder: one that records more has to see every test again."""
    return hashlib.sha256(RECORDER.read_bytes() + path.read_bytes()).hexdigest()


def as_bits(records: Iterable[Mapping[str, Iterable[int]]]) -> dict[str, int]:
    """The lines of several records together: file -> a number with a bit for each line."""
    found: dict[str, int] = {}
    for record in records:
        for file, lines in record.items():
            for line in lines:
                found[file] = found.get(file, 0) | 1 << line
    return found


def _as_text(reached: Mapping[str, int]) -> dict[str, str]:
    return {file: hex(bits) for file, bits in reached.items()}


def moved_lines(old: str, new: str) -> dict[int, int]:
    """Where the lines of a text stand in a later version of it; those that have changed are left out."""
    blocks = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False).get_matching_blocks()
    return {block.a + index + 1: block.b + index + 1 for block in blocks for index in range(block.size)}


def lines_that_show(sources: Mapping[str, str], file: str, line: int) -> dict[str, set[int]]:
    """The statements of functions in which the effect of a line is seen: file -> their first lines.

    A line of a function is seen where it stands. What runs at import is seen elsewhere: a default value in the body of
    its function, a constant or a field wherever its name stands, and in its own file if it stands there.
    """
    tree = ast.parse(sources[file])
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and _has_line(node, line)]
    functions = [node for node in around if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if functions:
        inside = around[around.index(functions[-1]) + 1 :]
        return {file: {inside[-1].lineno} if inside else {node.lineno for node in functions[-1].body}}
    names = {name for node in around[-1:] for name in _assigned_names(node)}
    if own := _lines_with(tree, names):
        return {file: own}
    found = {other: _lines_with(ast.parse(text), names) for other, text in sources.items()}
    found = {other: lines for other, lines in found.items() if lines}
    return found or {file: {node.lineno for node in _statements(tree)}}


def _has_line(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _assigned_names(node: ast.stmt) -> Iterator[str]:
    """The names that an assignment gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Every statement of a function's body, and those inside of it."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for statement in function.body:
                yield from (node for node in ast.walk(statement) if isinstance(node, ast.stmt))


def _lines_with(tree: ast.AST, names: Set[str]) -> set[int]:
    """The statements of functions in which a name stands."""
    return {node.lineno for node in _statements(tree) if names and not names.isdisjoint(_names_of(node))}


def _names_of(statement: ast.stmt) -> Iterator[str]:
    """The names in a statement, without those in the statements inside of it."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        waiting += [inner for inner in ast.iter_child_nodes(node) if not isinstance(inner, ast.stmt)]
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
