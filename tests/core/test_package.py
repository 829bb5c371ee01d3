"""Where the package lies: whose line is whose depends on it."""

from __future__ import annotations

from pathlib import Path

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
