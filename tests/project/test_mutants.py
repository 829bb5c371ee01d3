"""`make mutants` makes faults of every kind, runs the tests that reach them, and tells noticed faults from others."""

from __future__ import annotations

import ast
import json
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.mutant_laboratory import Laboratory, Mutant, chosen_tests
from benchmarks.mutants import ACCEPTED, all_mutants, changed_lines, chosen_mutants, is_accepted
from benchmarks.mutations import mutations_of
from benchmarks.reach import FAR, ReachMap, RecordedTest, lines_that_show, moved_lines
from tests.support.paths import REPOSITORY

SOURCE = '''
"""A docstring with 7 and True."""
from __future__ import annotations
@dataclass(frozen=True)
class A: ...
x: "Literal[3]" = 2
def f(a, b=False) -> 1:
    if a and not b:
        a.sort()
        a[0] = f"{a + 1}"
    while x < len(list(zip(a, b, strict=True))) * 2:
        x += 1
    if not x:
        return False
    return a is None
'''


def test_every_kind_of_fault_is_made() -> None:
    """Code is changed; texts, annotations, and flags that guard against slips of the code itself are not."""
    found = {(one.line, one.kind, one.text) for one in mutations_of(SOURCE)}
    assert found == {
        (6, "boundary", "3"),
        (7, "constant", "True"),
        (8, "and/or", "(a or not b)"),
        (8, "not", "(not (a and (not b)))"),
        (8, "not", "(b)"),
        (9, "deletion", "pass"),
        (10, "boundary", "1"),
        (10, "deletion", "pass"),
        (11, "arithmetic", "(len(list(zip(a, b, strict=True))) // 2)"),
        (11, "boundary", "3"),
        (11, "comparison", "(x <= len(list(zip(a, b, strict=True))) * 2)"),
        (12, "boundary", "2"),
        (12, "deletion", "pass"),
        (13, "not", "(x)"),
        (14, "constant", "True"),
        (15, "comparison", "(a is not None)"),
        (15, "return", "return None"),
    }


@pytest.fixture(scope="module")
def every_mutant() -> list[Mutant]:
    """Those of the whole package."""
    return all_mutants(REPOSITORY)


def test_every_mutant_is_another_program(every_mutant: list[Mutant]) -> None:
    """A fault that does not compile, or changes nothing, would count as noticed or not for no reason."""
    one_of_each_kind = {mutant.mutation.kind: mutant for mutant in every_mutant}
    assert one_of_each_kind.keys() >= {"boundary", "comparison", "deletion", "not", "return"}
    found = [*one_of_each_kind.values(), *random.Random(0).sample(every_mutant, 50)]
    for mutant in found:
        source = (REPOSITORY / mutant.file).read_text(encoding="utf-8")
        changed = mutant.mutation.apply(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), str(mutant)


def test_sample_stays_when_the_package_grows(every_mutant: list[Mutant]) -> None:
    """Strengthened tests are measured on the mutants that survived before; another seed chooses others."""
    few = every_mutant[::20]
    sample = chosen_mutants(few, 30, 0)
    assert len(sample) == 30
    assert [one for one in chosen_mutants(every_mutant, 1500, 0) if one in few][:30] == sample
    assert set(map(str, chosen_mutants(few, 30, 1))) != set(map(str, sample))
    assert len(chosen_mutants(few, 0, 0)) == len(few)


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


LINES = """
LIMIT = 3
FIELD = 4
def f(a, b=5):
    if a > b:
        return LIMIT
    return [
        a,
        7,
    ]
class C:
    size: int = 8
    def g(self):
        return self.size
"""


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (2, {"a.py": {6}}),  # a constant where its name stands
        (3, {"b.py": {2}}),  # in another file, where its own does not have it
        (4, {"a.py": {5, 7}}),  # a default value in the body
        (5, {"a.py": {5}}),
        (9, {"a.py": {7}}),  # the statement in whose middle it stands
        (12, {"a.py": {14}}),  # a field
    ],
)
def test_lines_that_show_are_those_in_which_an_effect_is_seen(line: int, shown: dict[str, set[int]]) -> None:
    """What runs at import has its effect where it is used."""
    assert lines_that_show({"a.py": LINES, "b.py": "def h():\n    return a.FIELD\n"}, "a.py", line) == shown


def test_moved_lines_are_found_by_their_text() -> None:
    """A line that has changed is no longer there; those around it have moved."""
    assert moved_lines("a\nb\nc\nd\n", "x\na\nb\nC\nd\n") == {1: 2, 2: 3, 4: 5}


TESTED = """
def smallest(numbers):
    found = numbers[0]
    while numbers:
        found = min(found, numbers.pop())
    return found

def used_in_a_process():
    return 1

def unused():
    return 2
"""
TEST = """
import os
import subprocess
import sys
import pytest
from torch2engine.core.a import smallest

@pytest.fixture(scope="module")
def found():
    return smallest([3, 1, 2])

def test_nothing():
    pass

def test_smallest(found):
    assert found == 1

def test_of_the_original_alone():
    assert smallest([1]) == 1 and "tree" not in __file__

def test_process():
    code = "from torch2engine.core.a import used_in_a_process as f; assert f() == 1"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_that_ends_its_process_in_a_copy():
    assert smallest([1]) == 1
    if "tree" in __file__:
        os._exit(3)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one small file and its tests, and their map."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("torch2engine/core", "tests/core"):
        (root / folder).mkdir(parents=True)
        for package in (root / folder, (root / folder).parent):
            (package / "__init__.py").touch()
    (root / "torch2engine/core/a.py").write_text(TESTED)
    (root / "tests/core/test_a.py").write_text(TEST)
    (root / "tests/core/conftest.py").write_text("import torch2engine.core.a\n")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu"]\n')
    ReachMap(root).renew(1)
    return root


def test_recorder_finds_the_lines_of_each_test(project: Path) -> None:
    """A test has the lines of its fixtures; a map that is read again finds them where they have moved to."""
    reach = ReachMap(project)
    assert reach.stale_files() == []
    file = "torch2engine/core/a.py"
    lines = {test.name.partition("::")[2]: test.reached.get(file, 0) for test in reach.tests}
    all_of_it = sum(1 << line for line in (3, 4, 5, 6))
    assert lines == {
        "test_nothing": 0,
        "test_smallest": all_of_it,
        "test_of_the_original_alone": all_of_it,
        "test_process": 0,
        "test_that_ends_its_process_in_a_copy": all_of_it,
    }
    assert [test.name.partition("::")[2] for test in reach.tests if test.starts_processes] == ["test_process"]
    (project / file).write_text(TESTED.replace("    found = numbers[0]", "    # first\n    found = numbers[-1]"))
    moved = {test.name.partition("::")[2]: test.reached.get(file, 0) for test in ReachMap(project).tests}
    (project / file).write_text(TESTED)
    assert moved["test_smallest"] == sum(1 << line for line in (5, 6, 7))


def test_changed_test_file_is_recorded_anew(project: Path) -> None:
    """Any other keeps its record, and one that has gone is forgotten."""
    place = project / "tests/core/test_b.py"
    place.write_text("def test_b():\n    pass\n")
    assert ReachMap(project).stale_files() == ["tests/core/test_b.py"]
    ReachMap(project).renew(1)
    assert [test.name for test in ReachMap(project).tests if "test_b" in test.name] == ["tests/core/test_b.py::test_b"]
    assert len(ReachMap(project).tests) == 6
    place.unlink()
    ReachMap(project).renew(1)
    assert len(ReachMap(project).tests) == 5


def test_named_files_record_the_tests_near_to_them_alone(project: Path) -> None:
    """Whoever mutates one file waits for its tests; a far one that has changed is forgotten, and recorded later."""
    place = project / "tests/test_far.py"
    for text in ("def test_far():\n    pass\n", "def test_far():\n    assert True\n"):
        place.write_text(text)
        ReachMap(project).renew(1, near=["torch2engine/core/a.py"])
        assert (len(ReachMap(project).tests), ReachMap(project).stale_files()) == (5, ["tests/test_far.py"])
        ReachMap(project).renew(1)
        assert (len(ReachMap(project).tests), ReachMap(project).stale_files()) == (6, [])
    place.unlink()
    ReachMap(project).renew(1)


def test_laboratory_tells_what_tests_notice(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fails or crashes without the fault, too, hides no other; the tree is afterwards as it was."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    laboratory = Laboratory(project, ReachMap(project), tmp_path, 1, preloaded=["pytest"])
    found = {
        f"{mutant.mutation.line} {mutant.mutation.text}": laboratory.try_mutant(mutant)
        for mutant in all_mutants(project)
    }
    laboratory.close()
    assert {mutant: outcome.name for mutant, outcome in found.items()} == {
        "3 1": "survived",  # another first number is the smallest one, too
        "4 (not (numbers))": "killed",
        "6 return None": "killed",
        "9 2": "killed",
        "9 return None": "killed",
        "12 3": "uncovered",
        "12 return None": "uncovered",
    }
    assert found["6 return None"].test == "tests/core/test_a.py::test_smallest"
    assert (tmp_path / "tree0/torch2engine/core/a.py").read_text() == TESTED
    # Python could take a compiled file for the next fault's, if it has its size and the second of its time.
    assert not list((tmp_path / "tree0/torch2engine/core/__pycache__").glob("a.*"))


def test_nearest_and_fastest_tests_come_first(project: Path) -> None:
    """A test file that imports the changed file is as near as the one of its name; one test at least is chosen."""
    mutant = all_mutants(project)[0]
    tests = [
        RecordedTest("tests/cli/test_z.py::test_0", 1.0, (), {}),
        RecordedTest("tests/core/test_b.py::test_1", 5.0, (), {}),
        RecordedTest("tests/core/test_a.py::test_2", 20.0, (), {}),
        RecordedTest("tests/core/test_a.py::test_3", 3.0, (), {}),
    ]
    reach = ReachMap(project)
    assert [test.seconds for test in chosen_tests(reach, mutant, tests)] == [3.0, 20.0, 5.0, 1.0]
    reach.imports["tests/cli/test_z.py"] = {"torch2engine.core.a"}
    assert [test.seconds for test in chosen_tests(reach, mutant, tests)] == [1.0, 3.0, 20.0, 5.0]
    slow = [RecordedTest("tests/core/test_a.py::test_2", seconds, (), {}) for seconds in (50.0, 500.0)]
    assert [test.seconds for test in chosen_tests(reach, mutant, slow)] == [50.0]


def test_tests_of_a_folder_may_lie_in_the_folder_above(project: Path) -> None:
    """The folder of a command has its tests beside those of the other commands."""
    reach = ReachMap(project)
    tests = ("tests/core/test_a.py", "tests/test_far.py")
    assert [reach.distance("torch2engine/core/deep/er/b.py", test) for test in tests] == [1, FAR]


def test_every_function_has_its_turn_before_the_parameters_of_one(project: Path) -> None:
    """The one test that notices a fault is slower than hundreds of parameters of another."""
    names = [*(f"test_many[{number}]" for number in range(9)), "test_other"]
    tests = [RecordedTest(f"tests/core/test_a.py::{name}", 0.1 + index, (), {}) for index, name in enumerate(names)]
    chosen = chosen_tests(ReachMap(project), all_mutants(project)[0], tests, most=3)
    assert [test.name.partition("::")[2] for test in chosen] == ["test_many[0]", "test_other", "test_many[1]"]
