"""One run of test files in a copy of the tree, in a process of its own.

Enters: a folder with the copy. Leaves: pytest's exit status as the process's. Apart from `mutants` because the process
must not have the package of the checkout, and starts sooner with few imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_tests"]

_FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "--no-header")
_OF_THE_TREE = ("torch2engine", "tests", "benchmarks")


def run_tests(tree: str, files: Sequence[str], checkout: str) -> None:
    """Run test files up to the first failure, and end the process with pytest's exit status.

    Args:
        tree: the copy. Its file "log" gets what the tests print.
        files: relative to it.
        checkout: the repository, of which nothing may be imported.
    """
    os.setsid()  # so that what the tests start can be ended with them
    output = os.open(f"{tree}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] in _OF_THE_TREE]:
        del sys.modules[name]
    sys.path[:] = [tree, *(one for one in sys.path if Path(one).absolute() != Path(checkout))]
    os.environ["PYTHONPATH"] = tree
    import pytest

    os._exit(int(pytest.main([*_FLAGS, *files])))
