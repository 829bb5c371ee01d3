"""Examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import PACKAGE

WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


class Finder(doctest.DocTestFinder):
    """Finds the examples of public classes too, which name the package as their module."""

    def _from_module(self, module: Any, object: Any) -> bool:
        if isinstance(object, type) and object.__module__ == "torch2engine":
            return f"class {object.__name__}" in Path(module.__file__).read_text(encoding="utf-8")
        return super()._from_module(module, object)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_docstring_examples_give_what_they_show(path: Path) -> None:
    """Every example in the module's docstrings prints what it says."""
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    runner = doctest.DocTestRunner()
    for test in Finder().find(module):
        runner.run(test)
    assert runner.tries == path.read_text(encoding="utf-8").count(">>> ")
    assert runner.failures == 0


def test_examples_are_found() -> None:
    """The package has examples, so this file can't pass by finding none."""
    assert WITH_EXAMPLES
