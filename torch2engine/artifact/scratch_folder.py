"""Scratch folders that remove themselves.

Enters: nothing. Leaves: an empty folder and the object that owns it. Separate because every stage writes into one
before an artifact is saved.

A folder is locked as long as its process lives. Nothing can clean up after a SIGKILL, so the first folder of each
process takes the place of those whose lock is free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType

from torch2engine.core.errors import ArtifactError

__all__ = ["ScratchFolder", "scratch_folder", "temporary_folder_error"]

_PREFIX = "torch2engine-scratch-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ScratchFolder:
    """A folder that is removed once nobody holds this object, or when its process ends.

    A forked child holds a copy of the object but never removes its parent's folder. In a `with`, the folder goes with
    the end of the body.

    Attributes:
        path: the folder, readable by this user alone.

    Raises:
        ArtifactError: the system's temporary folder can't be written, is full, or has a name that is not UTF-8.
    """

    def __init__(self) -> None:
        from multiprocessing.util import Finalize  # workers of multiprocessing run no other exit handlers

        try:
            folder, lock = _make_locked_folder()
        except (OSError, ValueError) as error:
            raise temporary_folder_error("scratch folder", error) from error
        self.path = Path(folder)
        self._remove = Finalize(self, _remove_scratch, (folder, lock), exitpriority=0)
        _sweep_once(os.getpid(), os.path.dirname(folder))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise temporary_folder_error("scratch folder", error) from error


def temporary_folder_error(subject: str, error: Exception) -> ArtifactError:
    """The error where the system has no usable folder for temporary files."""
    return ArtifactError(
        subject,
        got=f"'{error}'",
        allowed="a folder for temporary files",
        fix="point TMPDIR at a folder with room that can be written",
    )


def scratch_folder() -> ScratchFolder:
    """Make a scratch folder; keep the returned owner for as long as the folder is needed."""
    return ScratchFolder()


def _make_locked_folder() -> tuple[str, int]:
    """Make a folder, and lock it until the descriptor is closed or the process dies."""
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        try:
            folder.encode("utf-8")  # ONNX, ONNX Runtime and TensorRT take no other paths
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process took it for one that was left behind
        except (OSError, ValueError):
            os.rmdir(folder)
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:  # on a file system without locks nobody removes what isn't theirs
            pass
        if os.path.isdir(folder):
            return folder, lock
        os.close(lock)


def _remove_scratch(path: str, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


@cache
def _sweep_once(process: int, folder: str) -> None:
    """Remove scratch folders of this user whose processes have died."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_left_behind(entry.path)


def _remove_if_left_behind(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(lock)
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
