"""The files of one artifact, wherever they are: in a folder, or in memory until a folder is asked for.

Enters: a folder or bytes, and what is known of their hashes. Leaves: bytes that match, or an error. Apart from
`artifact` because it knows files and hashes but not what they are for.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch2engine.artifact.folder import (
    copy_file,
    link_file,
    read_and_record,
    read_file,
    record_file,
    scratch_folder,
    write_file,
)
from torch2engine.artifact.manifest import Record
from torch2engine.core.errors import ArtifactError

__all__ = ["Content", "disk_errors"]

_THREADS = 8
_WORTH_THREADS_BYTES = 4 << 20
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
        folder: where the files lie that are not in memory; None if all are.
        owner: an object to hold as long as the folder is needed.
        memory: file name -> bytes, before files of that name in the folder; the buffers must not be written to any
            more.
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
        self._memory = dict(memory or {})
        self._folder = folder
        self._whole = None if self._memory else folder  # where all files lie
        self._owner = owner
        self._records = dict(records or {})
        self._verified: set[str] = set()
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.names = tuple(sorted({*names, *self._memory}))

    def __str__(self) -> str:
        place = self._folder or self._whole
        return "in memory" if place is None else str(place)

    @property
    def folder(self) -> Path:
        """The folder with all files; unless they lie in one, they are brought together in a scratch folder first."""
        with self._lock:
            if self._whole is None:
                owner = scratch_folder()
                for name in self.names:
                    if name in self._memory:
                        with disk_errors(owner.path):
                            write_file(owner.path / name, self.read(name))
                    else:
                        with disk_errors(self._place, name):
                            link_file(self._place / name, owner.path / name)
                self._owner, self._whole = (self._owner, owner), owner.path
            return self._whole

    def path(self, name: str) -> Path:
        """Where one file lies, without a move of the others if it is on the disk."""
        return (self.folder if name in self._memory else self._place) / name

    @property
    def _place(self) -> Path:
        assert self._folder is not None, "what has no folder is in memory"
        return self._folder

    def record(self, name: str) -> Record:
        """The file's hash and size; read from the file if nobody knows them yet."""
        if name not in self._records:
            if name in self._memory:
                self._records[name] = Record.of(self._memory[name])
            else:
                with disk_errors(self._place, name):
                    self._records[name] = record_file(self._place / name)
        return self._records[name]

    def read(self, name: str) -> bytes | memoryview:
        """The file's bytes, which match its record if there is one."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            return kept
        if name in self._memory:
            data = self._memory[name]
        else:
            with disk_errors(self._place, name):
                data = read_file(self._place / name)
        if name in self._records and name not in self._verified:
            self._check(name, Record.of(data), _AGAIN if name in self._memory else _CHANGED)
        if name in self._memory:
            self._verified.add(name)
        return data

    def verify(self, keep: Collection[str] = ()) -> None:
        """Check every file against its record.

        Args:
            keep: files whose checked bytes wait in memory for the first `read`, which is then free.

        Raises:
            ArtifactError: a file is missing, of another size or holds other bytes; of several the first by name.
        """
        if sum(self.record(name).size_bytes for name in self.names) < _WORTH_THREADS_BYTES:
            for name in self.names:
                self._verify(name, name in keep)
            return
        with ThreadPoolExecutor(_THREADS) as pool:  # reading and hashing release the interpreter's lock
            for _ in pool.map(self._verify, self.names, [name in keep for name in self.names]):
                pass

    def _verify(self, name: str, keep: bool) -> None:
        if name in self._memory:
            self.read(name)
            return
        path, size = self._place / name, self.record(name).size_bytes
        with disk_errors(self._place, name):
            data, found = read_and_record(path, size) if keep else (None, record_file(path, size))
        self._check(name, found, _AGAIN)
        if data is not None:
            self._kept[name] = data

    def copy_into(self, folder: Path) -> dict[str, Record]:
        """Write every file into another folder, down to the disk, and return the records of what was written."""
        for name in self.names:
            if name in self._memory:
                write_file(folder / name, self.read(name))
                continue
            with disk_errors(self._place, name):
                if not (self._place / name).exists():
                    raise FileNotFoundError(errno.ENOENT, "no such file")
            copied = copy_file(self._place / name, folder / name)
            if name in self._records:
                self._check(name, copied, _CHANGED)
            self._records[name] = copied
        return {name: self.record(name) for name in self.names}

    def link_into(self, folder: Path) -> None:
        """Give every file a second name in another folder, by hard links where possible, else copy it."""
        for name in self.names:
            source = self.path(name)
            with disk_errors(source.parent, name):
                link_file(source, folder / name)

    def replaced(self, name: str, data: bytes | None) -> Content:
        """The same files with other bytes for one of them, or without it; shares the rest, hashes included.

        Args:
            name: the file, which may be a new one.
            data: its bytes; None leaves it out.
        """
        content = Content(
            folder=self._folder,
            owner=self._owner,
            names=[other for other in self.names if other != name],
            memory={key: held for key, held in {**self._memory, name: data}.items() if held is not None},
            records={key: record for key, record in dict(self._records).items() if key != name},
        )
        content._verified = self._verified - {name}
        return content

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
        path = "" if name in self._memory and self._whole is None else str(self.path(name))
        raise ArtifactError(f"artifact '{self}'", got=got, allowed=allowed, fix=fix, path=path)
