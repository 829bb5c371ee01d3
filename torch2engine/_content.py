"""The files of one artifact, wherever they are: in a folder, or in memory until a folder is asked for.

Enters: a folder or bytes, and what is known of their hashes. Leaves: bytes that match, or an error. Apart from
`artifact` because it knows files and hashes but not what they are for.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from torch2engine._folder import copy_file, link_file, read_file, record_file, scratch_folder, write_file
from torch2engine._manifest import Record
from torch2engine.errors import ArtifactError

__all__ = ["Content", "disk_errors"]

_AGAIN = "save it again or restore it from a copy"
_CHANGED = "it was changed since it was loaded: load it again"


@contextlib.contextmanager
def disk_errors(path: Path, name: str = "") -> Generator[None]:
    """Turn what the disk says about an artifact at `path`, or about its file `name`, into an ArtifactError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path that no system call takes, e.g. one holding a NUL
        subject = f"artifact '{path}'"
        where = str(path / name) if name else str(path)
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOENT and name:
            raise ArtifactError(subject, got=f"it holds no '{name}'", fix=_AGAIN, path=where) from error
        if number == errno.ELOOP and name:
            raise ArtifactError(
                subject,
                got=f"'{name}' is a symbolic link",
                allowed="only regular files are read",
                fix="copy the folder with its links followed, e.g. cp -rL",
                path=where,
            ) from error
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.strerror} ('{error.filename or where}')"
        raise ArtifactError(subject, got=reason, path=where) from error


class Content:
    """Named files that never change once they are here.

    Args:
        folder: where the files lie; None if they are in memory.
        owner: an object to hold as long as the folder is needed.
        memory: file name -> bytes, if there is no folder; the buffers must not be written to any more.
        names: the files of `folder`.
        records: what is known of them; the rest is worked out when it is needed.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        owner: object = None,
        names: Iterable[str] = (),
        memory: Mapping[str, bytes | memoryview] | None = None,
        records: Mapping[str, Record] | None = None,
    ) -> None:
        self._folder = folder
        self._owner = owner
        self._memory = dict(memory or {})
        self._records = dict(records or {})
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self.names = tuple(sorted({*names, *self._memory}))

    def __str__(self) -> str:
        return "in memory" if self._folder is None else str(self._folder)

    @property
    def on_disk(self) -> bool:
        """True once the files lie in a folder."""
        return self._folder is not None

    @property
    def folder(self) -> Path:
        """The folder with the files; files in memory are written to a scratch folder first."""
        with self._lock:
            if self._folder is None:
                owner = scratch_folder()
                with disk_errors(owner.path):
                    for name in self.names:
                        write_file(owner.path / name, self.read(name))
                self._owner, self._folder = owner, owner.path
            return self._folder

    def record(self, name: str) -> Record:
        """The file's hash and size; read from the file if nobody knows them yet."""
        if name not in self._records:
            if name in self._memory:
                self._records[name] = Record.of(self._memory[name])
            else:
                with disk_errors(self.folder, name):
                    self._records[name] = record_file(self.folder / name)
        return self._records[name]

    def read(self, name: str) -> bytes | memoryview:
        """The file's bytes, which match its record if there is one."""
        if name in self._memory:
            data = self._memory[name]
        else:
            with disk_errors(self.folder, name):
                data = read_file(self.folder / name)
        if name in self._records and name not in self._verified:
            self._check(name, Record.of(data), _AGAIN if name in self._memory else _CHANGED)
        if name in self._memory:
            self._verified.add(name)
        return data

    def verify(self) -> None:
        """Check every file against its record.

        Raises:
            ArtifactError: a file is missing, of another size or holds other bytes.
        """
        for name in self.names:
            if name in self._memory:
                self.read(name)
            else:
                with disk_errors(self.folder, name):
                    found = record_file(self.folder / name, self.record(name).size_bytes)
                self._check(name, found, _AGAIN)

    def copy_into(self, folder: Path) -> dict[str, Record]:
        """Write every file into another folder, down to the disk, and return the records of what was written."""
        for name in self.names:
            if name in self._memory:
                write_file(folder / name, self.read(name))
                continue
            with disk_errors(self.folder, name):
                if not (self.folder / name).exists():
                    raise FileNotFoundError(errno.ENOENT, "no such file")
            copied = copy_file(self.folder / name, folder / name)
            if name in self._records:
                self._check(name, copied, _CHANGED)
            self._records[name] = copied
        return {name: self.record(name) for name in self.names}

    def link_into(self, folder: Path) -> None:
        """Give every file a second name in another folder, by hard links where possible, else copy it."""
        for name in self.names:
            with disk_errors(self.folder, name):
                link_file(self.folder / name, folder / name)

    def inherit(self, other: Content) -> None:
        """Take over what `other` knows of files that both hold."""
        self._records.update({name: record for name, record in other._records.items() if name in self.names})

    def _check(self, name: str, found: Record, fix: str) -> None:
        expected = self._records[name]
        if found == expected:
            return
        got = f"'{name}' has {found.size_bytes} bytes"
        allowed = f"its manifest says {expected.size_bytes}"
        if found.size_bytes == expected.size_bytes:
            got = f"the bytes of '{name}' are not those that were saved"
            allowed = f"their SHA-256 must be {expected.sha256[:16]}…"
        path = "" if self._folder is None else str(self._folder / name)
        raise ArtifactError(f"artifact '{self}'", got=got, allowed=allowed, fix=fix, path=path)
