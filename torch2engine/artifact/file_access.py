"""Reading, hashing, copying and writing single files.

Enters: paths and bytes. Leaves: bytes of regular files, and the `FileRecord` of bytes that were read or copied.
Separate because every byte of an artifact passes through here, and links, folders and pipes are refused here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileRecord", "copy_file", "link_file", "read_and_record", "read_file", "record_file", "write_file"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """The SHA-256 in hex and the size in bytes that a file must have."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes | memoryview) -> FileRecord:
        """The record of these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


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


def record_file(path: Path, size_bytes: int | None = None) -> FileRecord:
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
    return FileRecord(digest.hexdigest(), size)


def read_and_record(path: Path, size_bytes: int) -> tuple[bytes, FileRecord]:
    """The bytes of a regular file with their SHA-256 and size; the bytes of a file of another size are not read."""
    with _regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size != size_bytes:
            return b"", FileRecord("", size)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read()
    return data, FileRecord.of(data)


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy a regular file to a new one, down to the disk, and return the record of the bytes that were copied."""
    digest = hashlib.sha256()
    size = 0
    with _regular(source) as descriptor, target.open("xb") as file:
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(digest.hexdigest(), size)


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Write a new file, down to the disk."""
    with target.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system can't, copy it."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)
