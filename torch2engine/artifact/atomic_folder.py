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
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "Content",
    "Replacement",
    "folder_content",
    "folder_identity",
    "previous_folder",
    "put_folder",
    "remove_abandoned",
    "sync_folder",
]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ATTEMPTS = 100


def folder_identity(folder: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of the last change; they differ once another folder is in this one's place.

    The time is needed because a file system may give the inode of a removed folder to the next new one. None if there
    is no folder.
    """
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def previous_folder(folder: Path) -> Path:
    """The path of the old folder during a replacement, on file systems that can't exchange two names."""
    return folder.with_name(f".{folder.name}.torch2engine-previous")


Content: TypeAlias = Mapping[str, tuple[int, ...]]
"""The names in a folder, each with numbers that another file of that name, or another state of it, does not share."""


def folder_content(folder: Path) -> Content:
    """List a folder: by name the device, inode, type, size and times of each entry, links not followed."""
    found: dict[str, tuple[int, ...]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            times = status.st_mtime_ns, status.st_ctime_ns
            found[entry.name] = (status.st_dev, status.st_ino, status.st_mode, status.st_size, *times)
    return found


@dataclass(frozen=True)
class Replacement:
    """The checks that decide what may be replaced.

    Args:
        check: called with the path if something is there; raises if it must stay, else returns its content.
        check_leftover: the same, for an old folder that a crash left at `previous_folder(path)`.
    """

    check: Callable[[Path], Content]
    check_leftover: Callable[[Path], Content]


def put_folder(path: Path, write: Callable[[Path], None], replacement: Replacement) -> None:
    """Make a folder at `path`, replacing what is there in one step.

    At every moment, a crash included, `path` is the whole old folder or the whole new one. There is one exception, on a
    file system that can't exchange two names. A crash may leave the whole old folder at `previous_folder(path)`, and
    nothing at `path`. The next `put_folder` puts it back before it does anything else.

    Args:
        path: the folder; its parent is made if missing.
        write: fills the empty folder that it is given; its files must be flushed to the disk.
        replacement: says what may be replaced. Nothing is removed but the content that it returned.

    Raises:
        OSError: the disk refused; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    staging, lock = _make_staging(path)
    try:
        write(staging)
        sync_folder(staging)
        _put(staging, path, replacement)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the new folder after a failure, or the old one after a replacement
        os.close(lock)


def _put(staging: Path, path: Path, replacement: Replacement) -> None:
    # Another process may make or remove `path` between the look and the rename: then look again.
    for attempt in range(_ATTEMPTS):
        try:
            _restore_previous(path)
            if not os.path.lexists(path):
                staging.rename(path)
                return
            content = replacement.check(path)
            with _held_against_other_saves(path) as is_held:
                if is_held and _exchange_checked(staging, path, content, replacement):
                    return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or attempt == _ATTEMPTS - 1:
                raise
    raise OSError(errno.EBUSY, "other processes replace it all the time", str(path))


@contextlib.contextmanager
def _held_against_other_saves(path: Path) -> Generator[bool]:
    """Lock the folder at `path`; false if another save has replaced it meanwhile.

    Once the two names are swapped, the old folder has a staging folder's name. Another save would remove it as
    abandoned, before it is known to be the folder that may be removed.
    """
    descriptor = _open_folder(path)
    try:
        with contextlib.suppress(OSError):  # without locks, no process removes leftovers
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        os.close(descriptor)


def _restore_previous(path: Path) -> None:
    """Put the old folder back that a crash has left aside, before its path counts as free."""
    if not os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):
            previous_folder(path).rename(path)


def _exchange_checked(staging: Path, path: Path, content: Content, replacement: Replacement) -> bool:
    """Put the new folder in the old one's place, and the old one at `staging`.

    Returns:
        False, with all as it was, if the old folder is no longer the one that was checked.
    """
    if _exchange(staging, path):
        if folder_content(staging) == content:
            return True
        return not _exchange(staging, path)
    aside = previous_folder(path)
    if os.path.lexists(aside):
        replacement.check_leftover(aside)
        _remove_aside(aside, path)
    path.rename(aside)
    try:
        if folder_content(aside) != content:
            aside.rename(path)
            return False
        staging.rename(path)
    except OSError:
        aside.rename(path)
        raise
    with contextlib.suppress(OSError):  # another save has moved it
        aside.rename(staging)
    return True


def _remove_aside(aside: Path, path: Path) -> None:
    """Remove a folder after a rename, so that no folder under its own name is ever half removed."""
    removed = path.with_name(f"{_staging_prefix(path)}{secrets.token_hex(8)}")
    aside.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


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
    for attempt in range(_ATTEMPTS):
        staging = path.with_name(f"{_staging_prefix(path)}{secrets.token_hex(8)}")
        try:
            staging.mkdir(parents=True)  # another process may have removed an empty parent
            descriptor = _open_folder(staging)
        except FileNotFoundError:  # also where no folder can ever be, as in /proc
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        with contextlib.suppress(OSError):  # without locks, no process removes leftovers
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if staging.exists():
            return staging, descriptor
        os.close(descriptor)  # another save removed the folder as abandoned before it was locked
    raise OSError(errno.EBUSY, "other processes remove unfinished folders all the time", str(path))


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


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = _open_folder(folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system whose folders need no flush
            raise
    finally:
        os.close(descriptor)
