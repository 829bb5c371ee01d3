"""Reading, hashing, copying and writing single files.

Enters: paths and bytes. Leaves: bytes of regular files, and the `FileRecord` of bytes that were read or copied.
Separate because every byte of an artifact passes through here, and links, folders and pipes are refused here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileRecord", "OpenFile", "read_file", "write_file"]

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


class OpenFile:
    """A regular file that stays open for reading, even if another file takes its name. Threads may share it.

    A link, a folder or a pipe is refused; links are not followed, and pipes are not waited for.

    Raises:
        OSError: it can't be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))

    @property
    def size_bytes(self) -> int:
        """The size that the file has now."""
        return os.fstat(self._descriptor).st_size

    def read(self) -> memoryview:
        """Read all bytes into memory; read-only."""
        data = bytearray(self.size_bytes)
        view = memoryview(data)
        end = 0
        while end < len(view) and (count := os.preadv(self._descriptor, [view[end:]], end)):
            end += count
        return view[:end].toreadonly()

    def record(self) -> FileRecord:
        """The SHA-256 and size of the bytes."""
        digest = hashlib.sha256()
        return FileRecord(size_bytes=self._feed(digest.update), sha256=digest.hexdigest())

    def copy_to(self, target: Path) -> FileRecord:
        """Copy the bytes to a new file, down to the disk, and return the record of what was copied."""
        digest = hashlib.sha256()
        with target.open("xb") as file:

            def take(chunk: bytes) -> None:
                digest.update(chunk)
                file.write(chunk)

            size = self._feed(take)
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(digest.hexdigest(), size)

    def link_to(self, target: Path) -> None:
        """Give this very file a second name; where the system can't, copy it."""
        if not _link(self._descriptor, target):
            self.copy_to(target)

    def _feed(self, take: Callable[[bytes], object]) -> int:
        """Give all bytes to a function, piece by piece, and return their number."""
        size = 0
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, size):
            take(chunk)
            size += len(chunk)
        return size


def _link(descriptor: int, target: Path) -> bool:
    """Give an open file a second name; False where that is impossible."""
    folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Without a folder's descriptor Python 3.11 calls link(2), which does not follow the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", target.name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it can't be read, is no regular file or has more than `limit_bytes`.
    """
    file = OpenFile(path)
    if file.size_bytes > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
    return bytes(file.read())


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Write a new file, down to the disk."""
    with target.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
