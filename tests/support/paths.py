"""Where things are: the repository, the package, and the files that tests read.

Enters: nothing. Leaves: folders. A room of its own so that a test that moves to another folder still finds them.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PACKAGE", "REPOSITORY", "SHARED_FOLDER", "SUPPORT", "TESTS"]

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "torch2engine"
TESTS = REPOSITORY / "tests"
SUPPORT = TESTS / "support"
# The variable that names a folder of this run, which all its processes share.
SHARED_FOLDER = "TORCH2ENGINE_TESTS_SHARED"
