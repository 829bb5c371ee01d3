"""Tries a mutant: a copy of the tree gets the fault, and the tests that reach it run.

Enters: the repository and the map of its tests. Leaves: for a mutant, whether a test noticed it. Apart from `mutants`,
which chooses the mutants and counts.

A run ends at the first failure. Only a test that passes in the copy without the fault may notice it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from benchmarks.mutations import Mutation
from benchmarks.reach import FAR, PASSED, ReachMap, RecordedTest, lines_that_show

__all__ = ["Laboratory", "Mutant", "Outcome", "chosen_tests"]

COPIED = ("torch2engine", "tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md", "ARCHITECTURE.md")
PRELOADED = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime.quantization", "pytest")
BUDGET_S = 30.0
BUDGET_OF_CHILDREN_S = 90.0  # where only processes that tests start can reach a fault
MOST_TESTS = 800
SECONDS_PER_TEST = 0.01  # that pytest takes for itself
SLACK = 4.0
LEAST_LIMIT_S = 60.0


@dataclass(frozen=True)
class Mutant:
    """One fault in one file of the package.

    Args:
        file: relative to the repository.
        source: the line of the file in which it begins, without spaces around it.
        mutation: the fault.
    """

    file: str
    source: str
    mutation: Mutation

    def __str__(self) -> str:
        return f"{self.file}:{self.mutation.line} {self.mutation.kind}: {self.source} -> {self.mutation.text}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Args:
        name: "killed", "killed by time", "survived", or "uncovered": no test reaches it.
        test: the one that noticed it; "" for none.
    """

    name: str
    test: str = ""


def reaching_tests(reach: ReachMap, mutant: Mutant) -> list[RecordedTest]:
    """The recorded tests that reach the fault."""
    shown = lines_that_show(reach.sources, mutant.file, mutant.mutation.line)
    return [test for test in reach.tests if any(test.reaches(file, lines) for file, lines in shown.items())]


def starting_tests(reach: ReachMap, mutant: Mutant) -> list[RecordedTest]:
    """The tests nearby that start processes. No record says what runs in these."""
    near = [test for test in reach.tests if reach.distance(mutant.file, test.file) < FAR]
    return [test for test in near if test.starts_processes]


def chosen_tests(
    reach: ReachMap, mutant: Mutant, tests: Collection[RecordedTest], most: int = MOST_TESTS, budget_s: float = BUDGET_S
) -> list[RecordedTest]:
    """Of some tests, the nearest first, up to the budget; at least one.

    Of these, the fastest of every function come first, so that hundreds of parameters of one displace no other.
    """
    fastest_first = sorted(tests, key=lambda test: expected_seconds(reach, [test]))
    counts: dict[str, int] = {}
    order: dict[str, tuple[int, int]] = {}
    for test in fastest_first:
        function = test.name.partition("[")[0]
        order[test.name] = (reach.distance(mutant.file, test.file), counts.get(function, 0))
        counts[function] = counts.get(function, 0) + 1
    sorted_tests = sorted(fastest_first, key=lambda test: order[test.name])
    chosen = sorted_tests[:1]
    for test in sorted_tests[1:]:
        if len(chosen) < most and expected_seconds(reach, [*chosen, test]) <= budget_s:
            chosen.append(test)
    return chosen


def expected_seconds(reach: ReachMap, tests: Collection[RecordedTest]) -> float:
    """How long tests take together; a fixture that several share runs once."""
    fixtures = {fixture for test in tests for fixture in test.fixtures}
    return sum(test.seconds + SECONDS_PER_TEST for test in tests) + sum(
        reach.seconds_of(fixture) for fixture in fixtures
    )


class Workplace:
    """A copy of the tree, and a process that runs tests in it.

    Args:
        root: the repository.
        tree: an empty folder.
        preloaded: modules that are imported once for all runs.
    """

    def __init__(self, root: Path, tree: Path, preloaded: Sequence[str]) -> None:
        self.tree = tree
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy(root / name, tree / name)
        command = [sys.executable, str(Path(__file__).with_name("mutant_worker.py")), *preloaded]
        self._server = subprocess.Popen(command, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, tests: Sequence[str], limit_s: float) -> tuple[int | None, str]:
        """Pytest's exit status, None after a limit; and the test that ran last."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"tests": tests, "limit_s": limit_s}) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["status"], answer["last"]

    @contextmanager
    def fault(self, mutant: Mutant) -> Iterator[None]:
        """Have a fault in the copy."""
        place = self.tree / mutant.file
        original = place.read_text(encoding="utf-8")
        _write_source(place, mutant.mutation.apply(original))
        try:
            yield
        finally:
            _write_source(place, original)

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def _write_source(place: Path, text: str) -> None:
    """Write a file. Python takes a compiled one for current that has its size and the second of its time."""
    place.write_text(text, encoding="utf-8")
    for compiled in place.parent.glob(f"__pycache__/{place.stem}.*.pyc"):
        compiled.unlink()


class Laboratory:
    """Tries mutants, one at a time in each of its copies of the tree.

    Args:
        root: the repository.
        reach: the map of its tests.
        folder: an empty one, for the copies.
        workers: how many copies.
        preloaded: modules that are imported once for all runs in a copy.
    """

    def __init__(
        self, root: Path, reach: ReachMap, folder: Path, workers: int, preloaded: Sequence[str] = PRELOADED
    ) -> None:
        self._reach = reach
        self._idle: SimpleQueue[Workplace] = SimpleQueue()
        self._sound: set[str] = set()
        self._unsound: set[str] = set()
        for number in range(workers):
            tree = folder / f"tree{number}"
            tree.mkdir()
            self._idle.put(Workplace(root, tree, preloaded))

    def try_mutant(self, mutant: Mutant) -> Outcome:
        """Run the tests that reach it, or may reach it in a process that they start.

        A test that fails, hangs or crashes without the fault, too, is left out, and the others run again.
        """
        reaching = reaching_tests(self._reach, mutant)
        tests = chosen_tests(self._reach, mutant, reaching)
        starting = [test for test in starting_tests(self._reach, mutant) if test not in tests]
        tests += chosen_tests(self._reach, mutant, starting, budget_s=BUDGET_S if reaching else BUDGET_OF_CHILDREN_S)
        place = self._idle.get()
        try:
            while usable := [test for test in tests if test.name not in self._unsound]:
                with place.fault(mutant):
                    status, last = self._run(place, usable)
                if status == PASSED:
                    return Outcome("survived" if reaching else "uncovered")
                suspects = [test for test in usable if test.name == last] or usable
                if self._are_sound(place, suspects):
                    return Outcome("killed by time" if status is None else "killed", suspects[0].name)
            return Outcome("uncovered")
        finally:
            self._idle.put(place)

    def close(self) -> None:
        """End the processes of the idle copies."""
        while not self._idle.empty():
            self._idle.get().close()

    def _are_sound(self, place: Workplace, tests: Sequence[RecordedTest]) -> bool:
        """Whether tests pass without the fault; those that don't are not taken again."""
        names = {test.name for test in tests}
        if names <= self._sound:
            return True
        status, _ = self._run(place, tests)
        (self._sound if status == PASSED else self._unsound).update(names)
        return status == PASSED

    def _run(self, place: Workplace, tests: Sequence[RecordedTest]) -> tuple[int | None, str]:
        """Run tests; the limit follows from how long they usually take."""
        limit_s = LEAST_LIMIT_S + SLACK * expected_seconds(self._reach, tests)
        return place.run([test.name for test in tests], limit_s)
