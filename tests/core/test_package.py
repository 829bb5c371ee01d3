"""Where the package lies, on which it depends whose line is whose, and what its public classes are called."""

from __future__ import annotations

import inspect
import pickle
import typing
from pathlib import Path

import pytest

import torch2engine
from tests.support.paths import PACKAGE, REPOSITORY
from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.package import PACKAGE_ROOT


def test_package_root_is_the_whole_package() -> None:
    """It is the folder of `torch2engine`, not that of the file that says so."""
    assert Path(torch2engine.__file__).parent == PACKAGE_ROOT == PACKAGE


def test_lines_of_every_file_of_the_package_are_never_the_users() -> None:
    """A user's line below frames of ours is found, whichever folder ours is in."""
    ours = [(str(path), 1) for path in PACKAGE_ROOT.rglob("*.py")]
    users = str(REPOSITORY / "train.py")
    assert innermost_user_frame([(users, 7), *ours]) == f"{users}:7"
    assert innermost_user_frame(ours) == ""


DECORATED = [
    kind
    for kind in (getattr(torch2engine, name) for name in torch2engine.__all__)
    if isinstance(kind, type) and kind.__module__ == "torch2engine"
]


@pytest.mark.parametrize("kind", DECORATED, ids=lambda kind: kind.__name__)
def test_public_class_is_pickled_by_its_public_name(kind: type) -> None:
    """A pickle names `torch2engine`, so it can be read after the class has moved to another file."""
    data = pickle.dumps(kind)
    assert b"torch2engine." not in data
    assert pickle.loads(data) is kind


@pytest.mark.parametrize("kind", DECORATED, ids=lambda kind: kind.__name__)
def test_public_class_can_still_be_inspected(kind: type) -> None:
    """Type hints resolve, and the sources of its methods are found."""
    hints = typing.get_type_hints(kind)
    assert not any(isinstance(hint, str) for hint in hints.values())
    methods = [method for method in vars(kind).values() if inspect.isfunction(method)]
    written = [method for method in methods if Path(method.__code__.co_filename).is_relative_to(PACKAGE_ROOT)]
    assert all(f"def {method.__name__}(" in inspect.getsource(method) for method in written)


def test_classes_that_users_import_name_the_package() -> None:
    """Errors, options, axes and artifacts read as `torch2engine.Name` in a traceback."""
    names = {kind.__name__ for kind in DECORATED}
    assert {"ShapeError", "BuildConfig", "Axis", "Preprocess", "Inputs", "OnnxArtifact", "EngineCache"} <= names
