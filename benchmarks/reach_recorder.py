"""A plugin of pytest that records which statements of the package each test reaches.

    python -m pytest -p benchmarks.reach_recorder --reach FOLDER tests/core

Enters: a run of tests. Leaves: a JSON file of each process in the folder: for each test that passed, its seconds, the
fixtures that it uses, and the lines of the statements that it reached; for each fixture, the seconds and the lines.
`reach` reads them. Apart from it because pytest loads this file in the processes that run tests.

The package's own files are compiled with a mark before each statement. So only the package becomes slower, where a
trace function would slow down PyTorch as well. A fixture that many tests share runs once; its lines count for all of
them. What runs in a process that a test starts is not recorded, but that it starts one is.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

__all__ = ["CHILD_PROCESS", "Recorder", "marked", "pytest_addoption", "pytest_load_initial_conftests"]

PACKAGE = "torch2engine"
MARK = "__reached__"
MOST_LINES = 100_000  # of a file
CHILD_PROCESS = "<child process>"  # stands for a file: its line 1 is reached by whoever starts a process
_STARTING = ("subprocess.Popen", "os.fork", "os.posix_spawn")  # audit events of Python


def marked(source: bytes, first: int) -> ast.Module:
    """A file's program, with a mark before each statement of its functions.

    Args:
        source: the file's text.
        first: added to the number of each line in the marks.
    """
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function.body = _marked_body(function.body, first)
    return ast.fix_missing_locations(tree)


def _marked_body(statements: Sequence[ast.stmt], first: int) -> list[ast.stmt]:
    """Statements with marks, also inside of them; functions and classes inside get their own."""
    body: list[ast.stmt] = []
    for statement in statements:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_text:  # a docstring stays the first
            call = ast.Call(ast.Name(MARK, ast.Load()), [ast.Constant(first + statement.lineno)], [])
            body.append(ast.copy_location(ast.Expr(call), statement))
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            _mark_inside(statement, first)
        body.append(statement)
    return body


def _mark_inside(node: ast.AST, first: int) -> None:
    """Put marks into the bodies that a statement has: of a loop, an except clause, a case."""
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if isinstance(statements, list) and statements:
            setattr(node, name, _marked_body(statements, first))
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        _mark_inside(part, first)


class MarkedLoader(SourceFileLoader):
    """Loads a file of the package with marks, and neither reads nor writes compiled files."""

    def __init__(self, fullname: str, path: str, recorder: Recorder) -> None:
        super().__init__(fullname, path)
        self._recorder = recorder

    def get_code(self, fullname: str) -> CodeType:
        """The program of the file."""
        path = self.get_filename(fullname)
        return compile(marked(self.get_data(path), self._recorder.first_number(path)), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        module.__dict__[MARK] = self._recorder.reach
        super().exec_module(module)


class Recorder:
    """Collects the marks that are passed while a test or a fixture runs.

    Args:
        root: the repository.
        folder: gets this process's file.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._place = folder / f"{os.getpid()}.json"
        self._reached: set[int] = set()
        self.reach = self._reached.add
        self._files = [CHILD_PROCESS]
        self._fixtures: dict[str, dict[str, Any]] = {}
        self._tests: dict[str, dict[str, Any]] = {}

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear Python's audit events."""
        if event in _STARTING:
            self.reach(1)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Find the package's files, for Python's import."""
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = MarkedLoader(fullname, spec.origin, self)
        return spec

    def first_number(self, path: str) -> int:
        """The number from which the lines of a file are counted in its marks."""
        self._files.append(str(Path(path).relative_to(self._root)))
        return (len(self._files) - 1) * MOST_LINES

    @contextmanager
    def recording(self, into: dict[str, Any]) -> Iterator[None]:
        """Add what runs inside to a record; what runs in an inner recording is the inner one's alone."""
        outer = self._reached.copy()
        self._reached.clear()
        started = time.monotonic()
        try:
            yield
        finally:
            into["seconds"] = into.get("seconds", 0.0) + time.monotonic() - started
            into["runs"] = into.get("runs", 0) + 1
            lines: dict[str, list[int]] = into.setdefault("lines", {})
            for number in sorted(self._reached.copy()):
                file = self._files[number // MOST_LINES]
                lines.setdefault(file, []).append(number % MOST_LINES)
            self._reached.clear()
            self._reached |= outer

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """Record the beginning of a fixture."""
        with self.recording(self._fixtures.setdefault(fixture_key(fixturedef), {})):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        """Record a test; one that fails leaves no record."""
        record: dict[str, Any] = {}
        with self.recording(record):
            result = yield
        found = item._fixtureinfo.name2fixturedefs
        used = {fixture_key(one) for name in item.fixturenames for one in found.get(name, ())[-1:]}
        record["fixtures"] = sorted(used & self._fixtures.keys())
        self._tests[item.nodeid] = record
        return result

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        if self._tests:
            self._place.write_text(json.dumps({"tests": self._tests, "fixtures": self._fixtures}), encoding="utf-8")


def fixture_key(definition: Any) -> str:
    """The name of a fixture, with the folder or file that defines it."""
    return f"{definition.baseid}::{definition.argname}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--reach", metavar="FOLDER", type=Path, help="record which statements of the package tests reach")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Record, if a folder is named. A conftest.py may import the package, so the marks must come before."""
    folder: Path | None = early_config.known_args_namespace.reach
    if folder is not None:
        recorder = Recorder(early_config.rootpath, folder)
        early_config.pluginmanager.register(recorder, "reach-recorder")
        sys.meta_path.insert(0, recorder)
        sys.addaudithook(recorder.hear)
