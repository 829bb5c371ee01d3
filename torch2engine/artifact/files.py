"""The files of one artifact, in a folder, or in memory until somebody needs a folder.

Enters: a folder or bytes, and the file records that are known already. Leaves: bytes that match their record, or an
error. Separate because it knows files and hashes but not their purpose.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch2engine.artifact.file_access import FileRecord, OpenFile, write_file
from torch2engine.artifact.scratch_folder import ScratchFolder, scratch_folder
from torch2engine.core.errors import ArtifactError
from torch2engine.core.fork_safe_lock import ForkSafeLock

__all__ = ["ArtifactFiles", "disk_errors"]

_THREADS = 8
_WORTH_THREADS_BYTES = 4 << 20
_USABLE = "a place that can be read and written"
_SEE_DISK = "see whether this process may use it and the disk has room"
_AGAIN = "save it again or restore it from a copy"
_CHANGED = "it was changed since it was loaded: load it again"


@contextlib.contextmanager
def disk_errors(path: Path, name: str = "") -> Generator[None]:
    """Turn an error of the disk about an artifact at `path`, or about its file `name`, into an ArtifactError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path that no system call takes, e.g. one holding a NUL
        subject = f"artifact '{path}'"
        where = str(path / name) if name else str(path)
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOENT and name:
            raise ArtifactError(
                subject, got=f"no '{name}'", allowed="every file of its manifest", fix=_AGAIN, path=where
            ) from error
        if number == errno.ELOOP and name:
            raise ArtifactError(
                subject,
                got=f"a symbolic link '{name}'",
                allowed="regular files",
                fix="copy the folder with its links followed, e.g. cp -rL",
                path=where,
            ) from error
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.strerror} ('{error.filename or where}')"
        raise ArtifactError(
            subject,
            got=f"'{reason}'",
            allowed=_USABLE,
            fix=_SEE_DISK,
            path=where,
        ) from error


class ArtifactFiles:
    """Named files that never change once they are here.

    Args:
        folder: where the files lie that are not in memory; None if all are.
        owner: an object to hold as long as the folder is needed.
        memory: file name -> bytes, before files of that name in the folder; the buffers must not be written to any
            more.
        names: the files of `folder`.
        records: the file records that are known already; the others are computed when they are needed.
        is_private: whether only this process writes to the folder, so that its files can be used without a copy.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        owner: object = None,
        names: Iterable[str] = (),
        memory: Mapping[str, bytes | memoryview] | None = None,
        records: Mapping[str, FileRecord] | None = None,
        is_private: bool = False,
    ) -> None:
        self._memory = dict(memory or {})
        self._folder = folder
        self._complete_folder = None if self._memory else folder  # where all files lie
        self._disk_names: dict[str, str] = {}  # the file's name in the folder, where it differs
        self._owners = (owner,)
        self._records = dict(records or {})
        self.is_private = is_private
        self._copy: ScratchFolder | None = None
        self._verified: set[str] = set()
        self._preloaded: dict[str, memoryview] = {}
        self._open: dict[str, OpenFile] = {}  # what `verify` has read, even if another file takes its name later
        self._lock = ForkSafeLock()
        self.names = tuple(sorted({*names, *self._memory}))

    def __str__(self) -> str:
        place = self._folder or self._complete_folder
        return "in memory" if place is None else str(place)

    @property
    def folder(self) -> Path:
        """The folder with all files; files that lie elsewhere are brought together in a scratch folder first."""
        with self._lock:
            if self._complete_folder is None:
                owner = scratch_folder()
                with disk_errors(owner.path):
                    self._link_all(owner.path)
                self._owners = (*self._owners, owner)
                self._complete_folder = owner.path
            return self._complete_folder

    def in_private_folder(self) -> ArtifactFiles:
        """Checked copies of all files where only this process writes; itself if this holds for its own files."""
        if self.is_private and all(map(self._lies_in_place, self.names)):
            return self
        copy = self._private_copy()
        return ArtifactFiles(
            folder=copy.path, owner=(self._owners, copy), names=self.names, records=self._records, is_private=True
        )

    def verified_path(self, name: str) -> Path:
        """A checked copy of one file that only this process can write to.

        Code that runs or hashes a file by its path takes this copy: another process may replace the original.
        """
        lies_in_private = self.is_private and self._lies_in_place(name)
        return (self._disk_folder if lies_in_private else self._private_copy().path) / name

    def _private_copy(self) -> ScratchFolder:
        """The scratch folder with a copy of all files, which is made once."""
        with self._lock:
            if self._copy is None:
                copy = scratch_folder()
                with disk_errors(copy.path):
                    self._copy_all(copy.path)
                self._copy = copy
            return self._copy

    def path(self, name: str) -> Path:
        """Where one file lies by its name. Unless it lies so on the disk, a folder with all files is made first."""
        return (self._disk_folder if self._lies_in_place(name) else self.folder) / name

    def _lies_in_place(self, name: str) -> bool:
        """Whether the file is on the disk under its own name."""
        return name not in self._memory and name not in self._disk_names

    @property
    def _disk_folder(self) -> Path:
        """The folder of the files that are not in memory."""
        assert self._folder is not None, "files without a folder are in memory"
        return self._folder

    def _file(self, name: str) -> OpenFile:
        """The file as `verify` has read it, or as it is now."""
        return self._open.get(name) or self._opened(name)

    def _opened(self, name: str) -> OpenFile:
        with disk_errors(self._disk_folder, name):
            return OpenFile(self._disk_folder / self._disk_names.get(name, name))

    def record(self, name: str) -> FileRecord:
        """The file's hash and size; hashed now if they are not known yet."""
        if name not in self._records:
            if name in self._memory:
                self._records[name] = FileRecord.of(self._memory[name])
            else:
                file = self._file(name)
                with disk_errors(self._disk_folder, name):
                    self._records[name] = file.record()
        return self._records[name]

    def read(self, name: str) -> bytes | memoryview:
        """Read the file's bytes and check them against its record if there is one."""
        preloaded = self._preloaded.pop(name, None)
        if preloaded is not None:
            return preloaded
        if name in self._memory:
            data = self._memory[name]
        else:
            file = self._file(name)
            with disk_errors(self._disk_folder, name):
                data = file.read()
        if name in self._records and name not in self._verified:
            self._check(name, FileRecord.of(data), _AGAIN if name in self._memory else _CHANGED)
        if name in self._memory:
            self._verified.add(name)
        return data

    def verify(self, preload: Collection[str] = ()) -> None:
        """Check every file against its record, and hold what was checked.

        Args:
            preload: files whose checked bytes wait in memory for the first `read`, which is then free.

        Raises:
            ArtifactError: a file is missing, of another size or holds other bytes; of several the first by name.
        """
        if sum(self.record(name).size_bytes for name in self.names) < _WORTH_THREADS_BYTES:
            for name in self.names:
                self._verify(name, name in preload)
            return
        with ThreadPoolExecutor(_THREADS) as pool:  # reading and hashing release the interpreter's lock
            for _ in pool.map(self._verify, self.names, [name in preload for name in self.names]):
                pass

    def _verify(self, name: str, preload: bool) -> None:
        if name in self._memory:
            self.read(name)
            return
        file = self._opened(name)
        with disk_errors(self._disk_folder, name):
            size = file.size_bytes
            if size != self.record(name).size_bytes:
                self._check(name, FileRecord("", size), _AGAIN)
            data = file.read() if preload else None
            found = file.record() if data is None else FileRecord.of(data)
        self._check(name, found, _AGAIN)
        self._open[name] = file
        if data is not None:
            self._preloaded[name] = data

    def copy_into(self, folder: Path) -> dict[str, FileRecord]:
        """Write every file into another folder, down to the disk, and return the records of what was written."""
        self._copy_all(folder)
        return {name: self.record(name) for name in self.names}

    def _copy_all(self, folder: Path) -> None:
        for name in self.names:
            if name in self._memory:
                write_file(folder / name, self.read(name))
                continue
            copied = self._file(name).copy_to(folder / name)
            if name in self._records:
                self._check(name, copied, _CHANGED)
            self._records[name] = copied

    def link_into(self, folder: Path) -> None:
        """Give every file a second name in another folder, by hard links where possible, else copy it."""
        self._link_all(folder)

    def _link_all(self, folder: Path) -> None:
        for name in self.names:
            if name in self._memory:
                with disk_errors(folder):
                    write_file(folder / name, self.read(name))
                continue
            file = self._file(name)
            with disk_errors(folder, name):
                file.link_to(folder / name)

    def replaced(self, changes: Mapping[str, bytes | None]) -> ArtifactFiles:
        """The same files with other bytes for some of them; the rest is shared, with its hashes.

        Args:
            changes: file name -> its new bytes, or None to leave it out. A name may be a new one.
        """
        memory = {**self._memory, **changes}
        files = ArtifactFiles(
            folder=self._folder,
            owner=self._owners,
            names=[name for name in self.names if name not in changes],
            memory={name: data for name, data in memory.items() if data is not None},
            records={name: record for name, record in dict(self._records).items() if name not in changes},
            is_private=self.is_private,
        )
        files._open = {name: file for name, file in self._open.items() if name not in changes}
        files._verified = self._verified - changes.keys()
        files._set_disk_names({name: old for name, old in self._disk_names.items() if name not in changes})
        return files

    def renamed(self, names: Mapping[str, str]) -> ArtifactFiles:
        """Some of the files under other names; the bytes are shared, with their hashes.

        Args:
            names: each file's name here -> its new name. A file that is not named is left out.
        """
        files = ArtifactFiles(
            folder=self._folder,
            owner=self._owners,
            names=[new for old, new in names.items() if old not in self._memory],
            memory={new: self._memory[old] for old, new in names.items() if old in self._memory},
            records={new: self._records[old] for old, new in names.items() if old in self._records},
            is_private=self.is_private,
        )
        files._open = {new: self._open[old] for old, new in names.items() if old in self._open}
        files._verified = {new for old, new in names.items() if old in self._verified}
        on_disk = {new: self._disk_names.get(old, old) for old, new in names.items() if old not in self._memory}
        files._set_disk_names({new: old for new, old in on_disk.items() if new != old})
        return files

    def _set_disk_names(self, names: dict[str, str]) -> None:
        self._disk_names = names
        if names:
            self._complete_folder = None  # no folder has them all under their own names

    def take_records(self, other: ArtifactFiles) -> None:
        """Take over the known records of files that both hold, so that they are not hashed again."""
        self._records.update({name: record for name, record in other._records.items() if name in self.names})

    def _check(self, name: str, found: FileRecord, fix: str) -> None:
        expected = self._records[name]
        if found == expected:
            return
        got = f"{found.size_bytes} bytes in '{name}'"
        allowed = f"{expected.size_bytes}, as its manifest says"
        if found.size_bytes == expected.size_bytes:
            got = f"other bytes in '{name}' than were saved"
            allowed = f"bytes whose SHA-256 is {expected.sha256[:16]}…"
        folder = self._complete_folder if name in self._memory else self._folder
        path = "" if folder is None else str(folder / self._disk_names.get(name, name))
        raise ArtifactError(f"artifact '{self}'", got=got, allowed=allowed, fix=fix, path=path)
