"""What every test may use: the repository's folder, and a fresh interpreter.

Enters: a test's wish. Leaves: facts that don't depend on which tests ran before. A room of its own because tests of
imports, crashes and signals need a process that nothing has touched.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import REPOSITORY, SHARED_FOLDER
from tests.support.run_scripts import run_scripts
from tests.support.slow_tests import slow_names

# Engines of tests go to a cache of this run, here and in processes that tests start.
_CACHE = tempfile.TemporaryDirectory(prefix="torch2engine-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# What all workers of a run share; the process that starts them makes it, and they find it in their environment.
_SHARED = None if SHARED_FOLDER in os.environ else tempfile.TemporaryDirectory(prefix="torch2engine-tests-shared-")
if _SHARED is not None:
    os.environ[SHARED_FOLDER] = _SHARED.name


# Each takes a minute. At the end of a run, one worker would be busy with one of them while the others wait.
LONGEST_FILES = ("test_examples.py", "test_ray.py", "test_benchmarks.py", "test_conformance.py")
# They share exports, which every process makes for itself: those of a weight's traps, and those of the trained models.
SHARING_FILES = (
    *("test_weight_program.py", "test_weight_sync.py"),
    *("test_lower.py", "test_reports.py", "test_precision_models.py"),
)


# How many objects are made before Python looks for garbage among them, and then how often among the older ones.
GARBAGE_THRESHOLDS = (20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage seldom in the tests: exports make much that lives on, and looking takes a twentieth of the time.

    While the files are imported, which leaves none, look for none: that takes a tenth of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark the tests of slow files, if a run chooses by this mark."""
    first = [*LONGEST_FILES, *SHARING_FILES]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))
    if "slow" not in config.option.markexpr:
        return
    slow_files = {path for path in {item.path for item in items} if slow_names(path.read_text(encoding="utf-8"))}
    for item in items:
        if item.path in slow_files:
            item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Pytest has looked for garbage once by now, and does so again: that finds nothing, and takes seconds."""
    gc.freeze()


@pytest.fixture
def quick_collection() -> Generator[None]:
    """gc.collect() looks through what the test makes, and not through all modules that other tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], Any]:
    """Run code in a fresh interpreter in the repository; its last line of output, as JSON, is the result."""

    def run(code: str) -> Any:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def run_fork() -> Callable[[str], Any]:
    """As `run_python`, in a fork of a process that has imported PyTorch and exported once, which takes no time."""

    def run(code: str) -> Any:
        (done,) = run_scripts([["-c", code]])
        assert done.code == 0, f"exit status {done.code}\n{done.err}"
        return json.loads(done.out.splitlines()[-1])

    return run
