"""Folders of files that appear whole or not at all, and scratch folders that go away by themselves.

Enters: paths and bytes. Leaves: files that were read as regular files, hashed while they passed, and folders put in
place by one rename. Apart from `artifact` because nothing here knows what the files mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Generator
from pathlib import Path

from torch2engine.artifact.manifest import Record
from torch2engine.core.errors import ArtifactError

__all__ = [
    "ScratchFolder",
    "copy_file",
    "identity",
    "link_file",
    "previous",
    "put_folder",
    "read_and_record",
    "read_file",
    "record_file",
    "remove_abandoned",
    "scratch_folder",
    "write_file",
]

_CHUNK_BYTES = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ATTEMPTS = 10


class ScratchFolder:
    """A folder that is removed once nobody holds this object, or when the process that made it ends.

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
                got=str(error),
                fix="point TMPDIR at a folder with room that can be written",
            ) from error
        weakref.finalize(self, _remove_scratch, str(self.path), os.getpid())


def scratch_folder() -> ScratchFolder:
    """Make a scratch folder; keep the returned owner for as long as the folder is needed."""
    return ScratchFolder()


def _remove_scratch(path: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _regular(path: Path) -> Generator[int]:
    """Open a regular file for reading; a link, a folder or a pipe is refused rather than followed or waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(path: Path, limit_bytes: int | None = None) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it can't be read, is no regular file or has more than `limit_bytes`.
    """
    with _regular(path) as descriptor:
        if limit_bytes is not None and os.fstat(descriptor).st_size > limit_bytes:
            raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()


def record_file(path: Path, size_bytes: int | None = None) -> Record:
    """The SHA-256 and size of a regular file.

    Args:
        path: the file.
        size_bytes: the size that it should have; the bytes of a file of another size are not read.
    """
    digest = hashlib.sha256()
    with _regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size_bytes is None or size == size_bytes:
            size = 0
            while chunk := os.read(descriptor, _CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    return Record(digest.hexdigest(), size)


def read_and_record(path: Path, size_bytes: int) -> tuple[bytes, Record]:
    """The bytes of a regular file with their SHA-256 and size; the bytes of a file of another size are not read."""
    with _regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size != size_bytes:
            return b"", Record("", size)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read()
    return data, Record.of(data)


def copy_file(source: Path, target: Path) -> Record:
    """Copy a regular file to a new one, down to the disk, and return the record of the bytes that were copied."""
    digest = hashlib.sha256()
    size = 0
    with _regular(source) as descriptor, target.open("xb") as file:
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            digest.update(chunk)
            size += file.write(chunk)
        _flush(file.fileno(), file.flush)
    return Record(digest.hexdigest(), size)


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Write a new file, down to the disk."""
    with target.open("xb") as file:
        file.write(data)
        _flush(file.fileno(), file.flush)


def _flush(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system can't, copy it."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def identity(folder: Path) -> tuple[int, int] | None:
    """What changes when another folder takes this one's place; None if there is none."""
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def previous(folder: Path) -> Path:
    """Where the old folder waits during a replacement on file systems that can't exchange two names."""
    return folder.with_name(f".{folder.name}.torch2engine-previous")


def put_folder(path: Path, write: Callable[[Path], None], check_replaceable: Callable[[Path], None]) -> None:
    """Make a folder at `path`, replacing what is there in one step.

    At every moment, a crash included, `path` is the whole old folder or the whole new one. Only on a file system that
    can't exchange two names may a crash leave the old folder, whole, at `previous(path)` and nothing at `path`.

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
    shutil.rmtree(previous(path), ignore_errors=True)


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
    aside = previous(path)
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
