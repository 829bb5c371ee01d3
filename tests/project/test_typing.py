"""The types that users see say what the code does; `make check` and `make typing` check `typing_sample/`."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest

import torch2engine as t2e
from tests.support.paths import PACKAGE
from torch2engine.core import precisions
from torch2engine.deploy_steps.deploy_options import DeployOptions

SAMPLE = PACKAGE.parent / "tests/project/typing_sample"
DECIDE_THE_TYPE = {"runtime", "fallback"}


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (precisions.PrecisionName, precisions.MODEL_PRECISIONS),
        (precisions.Float32PrecisionName, precisions.FLOAT32_PRECISIONS),
        (precisions.WeightPrecisionName, precisions.WEIGHT_PRECISIONS),
    ],
    ids=["model", "float32", "weights"],
)
def test_literal_names_are_those_of_the_table(literal: Any, table: tuple[str, ...]) -> None:
    """A precision that the table has can be written without an error of a type checker, and no other one."""
    assert set(get_args(literal)) == set(table)


def test_options_of_the_overloads_are_deploys_keywords() -> None:
    """An editor offers every keyword of deploy()."""
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(t2e.deploy).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(DeployOptions.__annotations__) == set(keywords) - DECIDE_THE_TYPE
    shown = {name: keywords[name].annotation for name in DeployOptions.__annotations__}
    assert {name: note.__forward_arg__ for name, note in DeployOptions.__annotations__.items()} == shown


@pytest.mark.parametrize("file", ["deploy.py", "deploy_steps/public_functions/load.py"])
def test_overloads_have_the_defaults_of_the_function(file: str) -> None:
    """What an editor shows as a default is the default."""
    *overloads, whole = [
        node
        for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == Path(file).stem
    ]
    assert len(overloads) >= 3
    for overload in overloads:
        assert defaults(overload).items() <= defaults(whole).items()


def defaults(function: ast.FunctionDef) -> dict[str, str]:
    """The defaults of a function, as they are written."""
    arguments = function.args
    positional = zip(arguments.args[::-1], arguments.defaults[::-1], strict=False)
    pairs = [*positional, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {argument.arg: ast.unparse(default) for argument, default in pairs if default is not None}


def test_sample_project_uses_the_public_names_alone() -> None:
    """What the checkers accept is what a user can write."""
    text = "".join(path.read_text(encoding="utf-8") for path in SAMPLE.glob("*.py"))
    assert "from torch2engine" not in text
    assert {"deploy", "load", "export", "check", "build"} <= {name for name in t2e.__all__ if f"t2e.{name}(" in text}
