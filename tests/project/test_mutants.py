"""`make mutants` makes small faults of every kind, runs the nearest tests, and tells noticed faults from others."""

from __future__ import annotations

import ast
import json
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.mutants import (
    ACCEPTED,
    ON_A_GPU,
    Laboratory,
    Mutant,
    all_mutants,
    changed_lines,
    is_accepted,
    nearest_tests,
)
from benchmarks.mutations import mutations_of
from tests.support.paths import REPOSITORY

SOURCE = '''
"""A docstring with 7 and True."""
from __future__ import annotations
x: "Literal[3]" = 2
def f(a, b=False) -> 1:
    if a and not b:
        a.sort()
        a[0] = f"{a + 1}"
    while x < len(a) * 2:
        x += 1
    return a is None
'''


def test_every_kind_of_fault_is_made() -> None:
    """Code is changed; texts and annotations are not."""
    found = {(one.line, one.kind, one.text) for one in mutations_of(SOURCE)}
    assert found == {
        (4, "boundary", "3"),
        (5, "constant", "True"),
        (6, "and/or", "(a or not b)"),
        (6, "not", "(not (a and (not b)))"),
        (6, "not", "(b)"),
        (7, "deletion", "pass"),
        (8, "boundary", "1"),
        (8, "deletion", "pass"),
        (9, "arithmetic", "(len(a) // 2)"),
        (9, "boundary", "3"),
        (9, "comparison", "(x <= len(a) * 2)"),
        (10, "boundary", "2"),
        (10, "deletion", "pass"),
        (11, "comparison", "(a is not None)"),
        (11, "return", "return None"),
    }


@pytest.fixture(scope="module")
def every_mutant() -> list[Mutant]:
    """Those of the whole package."""
    return all_mutants(REPOSITORY)


def test_every_mutant_is_another_program(every_mutant: list[Mutant]) -> None:
    """A fault that does not compile, or changes nothing, would count as noticed or not for no reason."""
    found = random.Random(0).sample(every_mutant, 50)
    assert {mutant.mutation.kind for mutant in found} >= {"boundary", "comparison", "deletion", "not", "return"}
    for mutant in found:
        source = (REPOSITORY / mutant.file).read_text(encoding="utf-8")
        changed = mutant.mutation.apply(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), str(mutant)


def test_every_file_that_runs_without_a_gpu_has_nearest_tests(every_mutant: list[Mutant]) -> None:
    """The file of the same name first, then those that import it; three at most, and all of them are there."""
    for file in {mutant.file for mutant in every_mutant}:
        found = nearest_tests(REPOSITORY, file)
        assert len(found) <= 3
        assert all((REPOSITORY / test).is_file() for test in found)
        assert found, file
        assert not file.startswith(ON_A_GPU)
    assert nearest_tests(REPOSITORY, "torch2engine/core/wording.py")[0] == "tests/core/test_wording.py"
    assert nearest_tests(REPOSITORY, "torch2engine/cli/doctor/gpus.py")[0] == "tests/cli/test_doctor.py"


def test_accepted_survivors_are_in_the_package_with_a_reason(every_mutant: list[Mutant]) -> None:
    """An entry whose line has gone says nothing any more."""
    entries = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    for entry in entries:
        assert entry.keys() == {"file", "line", "kind", "reason"}
        assert len(entry["reason"]) > 20
        assert [mutant for mutant in every_mutant if is_accepted(mutant, [entry])], entry


def test_changed_lines_are_those_that_the_commit_lacks(tmp_path: Path) -> None:
    """Added and changed lines, of the package alone."""
    (tmp_path / "torch2engine").mkdir()
    for name in ("torch2engine/a.py", "other.py"):
        (tmp_path / name).write_text("x = 1\ny = 2\nz = 3\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    for name in ("torch2engine/a.py", "other.py"):
        (tmp_path / name).write_text("x = 1\ny = 3\nz = 3\nw = 4\n")
    lines = changed_lines(tmp_path, "HEAD")
    assert {file: sorted(numbers) for file, numbers in lines.items()} == {"torch2engine/a.py": [2, 4]}
    assert [(one.mutation.line, one.source) for one in all_mutants(tmp_path, lines)] == [(2, "y = 3"), (4, "w = 4")]


TESTED = """
def smallest(numbers):
    found = numbers[0]
    while numbers:
        found = min(found, numbers.pop())
    return found
"""
TEST = """
from torch2engine.core.a import smallest

def test_smallest():
    assert smallest([3, 1, 2]) == 1
"""


def test_laboratory_tells_what_the_nearest_tests_notice(tmp_path: Path) -> None:
    """Noticed, survived and untested faults, and a tree that is as it was after each."""
    root = tmp_path / "root"
    for folder in ("torch2engine/core", "tests/core"):
        (root / folder).mkdir(parents=True)
        for package in (root / folder, (root / folder).parent):
            (package / "__init__.py").touch()
    (root / "torch2engine/core/a.py").write_text(TESTED)
    (root / "torch2engine/core/b.py").write_text("x = 1\n")
    (root / "tests/core/test_a.py").write_text(TEST)
    (root / "tests/core/test_b.py").write_text("def test_b():\n    raise ValueError\n")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    laboratory = Laboratory(root, tmp_path, 1, preloaded=["pytest"])
    found = {
        f"{mutant.mutation.line} {mutant.mutation.text}": laboratory.try_mutant(mutant) for mutant in all_mutants(root)
    }
    assert found == {
        "3 1": "survived",  # another first number is the smallest one, too
        "4 (not (numbers))": "killed",
        "6 return None": "killed",
        "1 2": "untested",  # its test fails without the fault
    }
    assert (tmp_path / "tree0/torch2engine/core/a.py").read_text() == TESTED
