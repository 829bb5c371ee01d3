"""Scratch folders that remove themselves.

Enters: nothing. Leaves: an empty folder and the object that owns it. Separate because every stage writes into one
before an artifact is saved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from torch2engine.core.errors import ArtifactError

__all__ = ["ScratchFolder", "scratch_folder"]


class ScratchFolder:
    """A folder that is removed once nobody holds this object, or when its process ends.

    A forked child holds a copy of the object but never removes its parent's folder.

    Attributes:
        path: the folder, readable by this user alone.

    Raises:
        ArtifactError: the system's temporary folder can't be written.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix="torch2engine-"))
        except OSError as error:
            raise ArtifactError(
                "scratch folder",
                got=f"'{error}'",
                allowed="a folder for temporary files",
                fix="point TMPDIR at a folder with room that can be written",
            ) from error
        weakref.finalize(self, _remove_scratch, str(self.path), os.getpid())


def scratch_folder() -> ScratchFolder:
    """Make a scratch folder; keep the returned owner for as long as the folder is needed."""
    return ScratchFolder()


def _remove_scratch(path: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
