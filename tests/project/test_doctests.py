"""Examples in docstrings are true, and every public name has one.

Examples may use the names of the README's first example without making them; docs/api.md lists them. Each module's
examples run in a scratch folder of their own, without a GPU.
"""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.support.local_hub import local_hub
from tests.support.paths import PACKAGE, REPOSITORY
from torch2engine.core import errors

WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LIBRARIES = {"torch": torch, "t2e": t2e}
PUBLIC = sorted({*t2e.__all__} - {"__version__", "testing"}) + [f"testing.{name}" for name in t2e.testing.__all__]
MADE = ("model", "sample", "axes", "module", "onnx", "engine", "hub")


class Finder(doctest.DocTestFinder):
    """Finds the examples of public classes too, which name the package as their module."""

    def _from_module(self, module: Any, object: Any) -> bool:
        if isinstance(object, type) and object.__module__ == "torch2engine":
            text = Path(module.__file__).read_text(encoding="utf-8")
            return re.search(rf"^class {object.__name__}\b", text, re.MULTILINE) is not None
        return super()._from_module(module, object)


class Net(torch.nn.Module):
    """The network of the README's first example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Made:
    """What examples find ready. Each is made when an example first uses it.

    Args:
        folder: for files of the Hub.
        stack: ends the Hub.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    @cached_property
    def model(self) -> Net:
        return Net()

    @cached_property
    def sample(self) -> torch.Tensor:
        return torch.rand(8, 3, 64, 64)

    @cached_property
    def axes(self) -> dict[str, Any]:
        return {"x": {0: t2e.Axis("batch", min=1, opt=8, max=32)}}

    @cached_property
    def module(self) -> Any:
        return t2e.deploy(self.model, self.sample, self.axes, runtime="onnxruntime")

    @cached_property
    def onnx(self) -> t2e.OnnxArtifact:
        return t2e.export(self.model, self.sample, self.axes)

    @cached_property
    def engine(self) -> t2e.EngineArtifact:
        return t2e.build(self.onnx)

    @cached_property
    def hub(self) -> str:
        return self._stack.enter_context(local_hub(self._folder))[0]

    def names_for(self, test: doctest.DocTest) -> dict[str, Any]:
        """Those of MADE that stand in the examples."""
        source = "".join(example.source for example in test.examples)
        return {name: getattr(self, name) for name in MADE if re.search(rf"\b{name}\b", source)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The same for every module's examples."""
    torch.manual_seed(0)
    with ExitStack() as stack:
        yield Made(tmp_path_factory.mktemp("hub"), stack)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_docstring_examples_give_what_they_show(
    path: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example in the module's docstrings prints what it says."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in Finder().find(module, extraglobs=LIBRARIES):
        test.globs |= made.names_for(test)
        runner.run(test)
    assert runner.tries == path.read_text(encoding="utf-8").count(">>> ")
    assert runner.failures == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_an_example(name: str) -> None:
    """Who looks a public name up sees how it is used; that the example is true is tested above."""
    assert ">>> " in (attrgetter(name)(t2e).__doc__ or "")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_example_of_an_error_shows_a_text_with_all_its_parts(name: str) -> None:
    """Who looks an error up sees a call that raises it, and its text: what was given, what is right, and the fix."""
    if name != "Torch2EngineError":  # what is raised is one of the others
        text = rf"torch2engine\.{name}: .+:\s+got .+;\s+expected .+;\s+\w"
        assert re.search(text, getattr(t2e, name).__doc__, re.DOTALL)


def test_page_of_the_api_lists_the_names_that_examples_use() -> None:
    """Who copies an example learns where its names come from."""
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    assert {name for name in (*LIBRARIES, *MADE) if f"`{name}`" not in page} == set()


def test_examples_are_found() -> None:
    """The package has examples, so this file can't pass by finding none."""
    assert WITH_EXAMPLES
