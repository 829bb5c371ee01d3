"""Folders that appear whole or not at all.

Enters: a path and a function that writes the files. Leaves: the finished folder, put in place by one rename. Separate
because nothing here knows what the files mean; artifacts and the engine cache rely on it alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["folder_identity", "previous_folder", "put_folder", "remove_abandoned"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ATTEMPTS = 10


def folder_identity(folder: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of the last change: other ones when another folder took this one's place.

    The time is needed because a file system gives a removed folder's inode to the next new one. None if there is no
    folder.
    """
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def previous_folder(folder: Path) -> Path:
    """Where the old folder waits during a replacement on file systems that can't exchange two names."""
    return folder.with_name(f".{folder.name}.torch2engine-previous")


def put_folder(path: Path, write: Callable[[Path], None], check_replaceable: Callable[[Path], None]) -> None:
    """Make a folder at `path`, replacing what is there in one step.

    At every moment, a crash included, `path` is the whole old folder or the whole new one. Only on a file system that
    can't exchange two names may a crash leave the old folder, whole, at `previous_folder(path)` and nothing at `path`.

    Args:
        path: the folder; its parent is made if missing.
        write: fills the empty folder that it is given; its files must be flushed to the disk.
        check_replaceable: called with `path` if something is there; raises if it must stay.

    Raises:
        OSError: the disk refused; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    staging, lock = _make_staging(path)
    try:
        write(staging)
        _sync_folder(staging)
        _put(staging, path, check_replaceable)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the failed new folder, or after an exchange the old one
        os.close(lock)
    shutil.rmtree(previous_folder(path), ignore_errors=True)


def _put(staging: Path, path: Path, check_replaceable: Callable[[Path], None]) -> None:
    # Another process may make or remove `path` between the look and the rename: then look again.
    for attempt in range(_ATTEMPTS):
        try:
            if os.path.lexists(path):
                check_replaceable(path)
                if not _exchange(staging, path):
                    _replace_in_two_steps(staging, path)
            else:
                staging.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or attempt == _ATTEMPTS - 1:
                raise


def _replace_in_two_steps(staging: Path, path: Path) -> None:
    aside = previous_folder(path)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    try:
        staging.rename(path)
    except OSError:
        aside.rename(path)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the C library, the kernel or the file system can't."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _staging_prefix(path: Path) -> str:
    return f".{path.name}.torch2engine-saving-"


def _make_staging(path: Path) -> tuple[Path, int]:
    """Make a folder beside `path` and lock it until the descriptor is closed or the process dies."""
    while True:
        staging = path.with_name(f"{_staging_prefix(path)}{secrets.token_hex(8)}")
        staging.mkdir()
        with contextlib.suppress(FileNotFoundError):
            descriptor = _open_folder(staging)
            with contextlib.suppress(OSError):  # on a file system without locks nobody removes what isn't theirs
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if staging.exists():
                return staging, descriptor
            os.close(descriptor)
        # Another save took it for abandoned before it was locked.


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of their saves to `path`; a running save holds a lock."""
    for folder in list(path.parent.glob(f"{glob.escape(_staging_prefix(path))}*")):
        with contextlib.suppress(OSError):
            descriptor = _open_folder(folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sync_folder(folder: Path) -> None:
    descriptor = _open_folder(folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system whose folders need no flush
            raise
    finally:
        os.close(descriptor)
