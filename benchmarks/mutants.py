"""Strength of the test suite: how many small faults in the package do the nearest tests notice?

    python -m benchmarks.mutants                        the lines that differ from main
    python -m benchmarks.mutants --base main~5          the lines that have changed since
    python -m benchmarks.mutants --all --sample 300     a sample of the whole package

Enters: the package and its tests. Leaves: `mutants.json`: faults tried, and the share that tests noticed. Needs no GPU.
Apart from the tests because it takes minutes to hours.

Each mutant runs in a copy of the tree, never in the checkout. Only the test files nearest to the changed file run, up
to the first failure. A mutant that hangs is stopped after a limit that follows from the run without a fault. Survivors
that are no weakness stand in `accepted_mutants.json` with the reason. Files that run on a GPU alone are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks._script import options, run
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.mutant_worker import run_tests
from benchmarks.mutations import Mutation, mutations_of

__all__ = ["ACCEPTED", "Laboratory", "Mutant", "all_mutants", "nearest_tests"]

ACCEPTED = REPOSITORY / "benchmarks" / "accepted_mutants.json"
PACKAGE = "torch2engine"
COPIED = ("torch2engine", "tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md", "ARCHITECTURE.md")
PRELOADED = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "pytest")
MOST_TEST_FILES = 3
SLACK = 4.0
LEAST_LIMIT_S = 20.0
WANTED_MUTANTS = 300
WANTED_SHARE = 0.9

# Where neither a file's name nor an import leads to the tests that hold it: the beginning of its path, and these.
NEAREST = {
    "torch2engine/core/json_rules.py": (
        "tests/artifact/test_manifest_fields.py",
        "tests/artifact/test_artifact_mutations.py",
    ),
    "torch2engine/fallback/": ("tests/fallback/test_deploy_in_parts.py", "tests/fallback/test_saved_parts.py"),
    "torch2engine/exporter/trace_weights.py": ("tests/capture/test_weight_program.py",),
    "torch2engine/precision/graph/calibrate_ranges.py": ("tests/precision/test_quantize.py",),
    "torch2engine/precision/graph/count_nodes.py": ("tests/precision/test_lower.py",),
    "torch2engine/precision/graph/modelopt.py": ("tests/precision/test_quantize.py",),
    "torch2engine/precision/graph/quantized_writer.py": ("tests/precision/test_quantize.py",),
}
# Nothing of these runs without a GPU: tests/gpu holds them.
ON_A_GPU = (
    *("torch2engine/modules/trt/", "torch2engine/trt/cuda_graph.py", "torch2engine/trt/engine.py"),
    *("torch2engine/trt/engine_agreement.py", "torch2engine/trt/foreign_plan.py", "torch2engine/trt/live_engines.py"),
    *("torch2engine/processor/cuda.py", "torch2engine/processor/processor_session.py"),
)


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
class TestFile:
    """A test file, relative to the repository, and the modules that it imports."""

    path: Path
    imported: frozenset[str]

    @classmethod
    def read(cls, root: Path, path: Path) -> TestFile:
        """Find what a file imports; a name that is imported from a folder may be a module."""
        found: set[str] = set()
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return cls(path, frozenset(found))


def all_mutants(root: Path, lines: dict[str, Collection[int]] | None = None) -> list[Mutant]:
    """The mutants of the package.

    Args:
        root: the repository.
        lines: file -> the lines in which a fault may begin; None for all of the package.
    """
    found: list[Mutant] = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        file = str(path.relative_to(root))
        if file.startswith(ON_A_GPU) or (lines is not None and file not in lines):
            continue
        source = path.read_text(encoding="utf-8")
        text = source.splitlines()
        for mutation in mutations_of(source):
            if lines is None or mutation.line in lines[file]:
                found.append(Mutant(file, text[mutation.line - 1].strip(), mutation))
    return found


def changed_lines(root: Path, base: str) -> dict[str, Collection[int]]:
    """The package's lines that the working tree has and a commit has not: file -> numbers."""
    command = ["git", "-C", str(root), "diff", "--unified=0", base, "--", PACKAGE]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Collection[int]] = {}
    file = ""
    for line in text.splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first = int(match[1])
            found[file] = {*found.get(file, ()), *range(first, first + int(match[2] or 1))}
    return found


def nearest_tests(root: Path, file: str) -> tuple[str, ...]:
    """The test files that are nearest to a file of the package, without those that need a GPU.

    First comes the file of the same name in the folder of the same name, or the one that is named after the folder.
    Then come those that import the file, the smallest first. Where there is none, those of the same folder stand for
    it.
    """
    for beginning, tests in NEAREST.items():
        if file.startswith(beginning):
            return tests
    path = Path(file)
    folder = Path("tests", *path.parts[1:-1])
    mirror = folder / f"test_{path.stem}.py"
    module = ".".join(path.with_suffix("").parts)
    named = (mirror, folder.parent / f"test_{folder.name}.py")
    found = [str(one) for one in named if (root / one).exists()][:1]
    usable = _test_files(root)
    found += [str(test.path) for test in usable if module in test.imported]
    if not found:
        found = [str(test.path) for test in usable if test.path.parent == folder]
    return tuple(dict.fromkeys(found))[:MOST_TEST_FILES]


@cache
def _test_files(root: Path) -> list[TestFile]:
    """The test files that need no GPU and are no tests of the project itself, the smallest first."""
    paths = [path.relative_to(root) for path in (root / "tests").rglob("test_*.py")]
    usable = [path for path in paths if not {"gpu", "gpu2", "project"} & set(path.parts)]
    return [TestFile.read(root, path) for path in sorted(usable, key=lambda one: ((root / one).stat().st_size, one))]


class Laboratory:
    """Copies of the tree in which mutants are tried, one at a time in each.

    Args:
        root: the repository.
        folder: an empty one, for the copies.
        workers: how many copies.
        preloaded: modules that are imported once for all processes.
    """

    def __init__(self, root: Path, folder: Path, workers: int, preloaded: Sequence[str] = PRELOADED) -> None:
        self._root = root
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preloaded))
        self._trees: SimpleQueue[Path] = SimpleQueue()
        self._usual_s: dict[tuple[str, ...], float | None] = {}
        for number in range(workers):
            tree = folder / f"tree{number}"
            tree.mkdir()
            for name in COPIED:
                if (root / name).is_dir():
                    shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
                elif (root / name).exists():
                    shutil.copy(root / name, tree / name)
            self._trees.put(tree)

    def try_mutant(self, mutant: Mutant) -> str:
        """Run the nearest tests.

        Returns:
            "killed", "killed by time", "survived", or "untested": there is no test, or it fails without the fault.
        """
        files = nearest_tests(self._root, mutant.file)
        tree = self._trees.get()
        try:
            usual_s = self._usual(tree, files)
            if usual_s is None:
                return "untested"
            place = tree / mutant.file
            original = place.read_text(encoding="utf-8")
            place.write_text(mutant.mutation.apply(original), encoding="utf-8")
            try:
                code = self._run(tree, files, LEAST_LIMIT_S + SLACK * usual_s)
            finally:
                place.write_text(original, encoding="utf-8")
        finally:
            self._trees.put(tree)
        if code is None:
            return "killed by time"
        return "survived" if code == 0 else "killed"

    def _usual(self, tree: Path, files: tuple[str, ...]) -> float | None:
        """How long the tests take without a fault; None if they fail, or if there are none."""
        if files not in self._usual_s:
            started = time.monotonic()
            passed = bool(files) and self._run(tree, files, 600.0) == 0
            self._usual_s[files] = time.monotonic() - started if passed else None
        return self._usual_s[files]

    def _run(self, tree: Path, files: Sequence[str], limit_s: float) -> int | None:
        """Pytest's exit status; None after the limit."""
        process = self._context.Process(target=run_tests, args=(str(tree), files, str(self._root)))
        process.start()
        process.join(limit_s)
        is_late = process.is_alive()
        if is_late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return None if is_late else process.exitcode


def is_accepted(mutant: Mutant, accepted: Sequence[dict[str, str]]) -> bool:
    """Whether the committed list says why no test need notice it."""
    key = {"file": mutant.file, "line": mutant.source, "kind": mutant.mutation.kind}
    return any(key.items() <= entry.items() for entry in accepted)


def chosen_mutants(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants that the options name, in random order: a run that is cut is a smaller sample."""
    lines = None if arguments.all else changed_lines(REPOSITORY, arguments.base)
    found = all_mutants(REPOSITORY, lines)
    return random.Random(arguments.seed).sample(found, min(len(found), arguments.sample or len(found)))


def outcomes(mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    """Try mutants; give each with what became of it."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        laboratory = Laboratory(REPOSITORY, Path(folder), workers)
        yield from zip(mutants, pool.map(laboratory.try_mutant, mutants), strict=True)


def measure(evidence: Evidence, arguments: argparse.Namespace) -> None:
    """Try the mutants, and record what survived."""
    os.nice(arguments.nice)
    os.environ["OMP_NUM_THREADS"] = "1"
    accepted: list[dict[str, str]] = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    counts = {"killed": 0, "killed by time": 0, "survived": 0, "untested": 0}
    survivors: list[str] = []
    explained: list[str] = []
    for mutant, outcome in outcomes(chosen_mutants(arguments), arguments.workers):
        counts[outcome] += 1
        if outcome in ("survived", "untested"):
            (explained if is_accepted(mutant, accepted) else survivors).append(f"{mutant} ({outcome})")
            print(f"{outcome}: {mutant}", flush=True)
        tried = sum(counts.values())
        evidence.figure("mutants.tried", tried)
        evidence.figure("mutants.killed_share", (counts["killed"] + counts["killed by time"]) / tried)
        evidence.samples |= {"outcomes": counts, "survivors": survivors, "accepted_survivors": explained}
        evidence.write_draft()
    if arguments.all:
        assert evidence.figures["mutants.tried"] >= WANTED_MUTANTS, f"fewer than {WANTED_MUTANTS} mutants"
        assert evidence.figures["mutants.killed_share"] >= WANTED_SHARE, f"less than {WANTED_SHARE:.0%} were noticed"
    assert not survivors or arguments.all, f"{len(survivors)} survived; strengthen a test, or accept it with a reason"


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--base", default="main", help="commit whose differences to the working tree are mutated")
    parser.add_argument("--all", action="store_true", help="the whole package instead")
    parser.add_argument("--sample", type=int, default=0, help="try so many of them, chosen at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="copies of the tree")
    parser.add_argument("--nice", type=int, default=15, help="added to the process's niceness")
    run("mutants", measure, parser, covers=[""], needs_gpu=False)
