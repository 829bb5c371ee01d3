"""What both kinds of artifact share: facts and files that never change, saving, loading, pickling.

Enters: a folder, or bytes with their manifest. Leaves: `Artifact`, every byte of it checked. Apart from `artifact` so
that there only the difference between an ONNX model and an engine is left to read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar

from torch2engine.artifact.files import Content, disk_errors
from torch2engine.artifact.folder import identity, previous, put_folder, read_file, scratch_folder, write_file
from torch2engine.artifact.manifest import LIMIT_BYTES, NAME, Facts, canonical, claimed_files, compose, parse
from torch2engine.core.errors import ArtifactError
from torch2engine.core.spec import Profile, Signature

__all__ = ["ALL_FILES", "ONNX", "ONNX_DATA", "PLAN", "RUNTIME_CACHE", "WEIGHTS", "Artifact", "load_parts"]

ONNX = "model.onnx"
ONNX_DATA = "model.onnx.data"
PLAN = "model.plan"
WEIGHTS = "weights.json"
RUNTIME_CACHE = "runtime.cache"
ALL_FILES = (ONNX, ONNX_DATA, WEIGHTS, PLAN, RUNTIME_CACHE)

_MAIN = {"onnx": ONNX, "engine": PLAN}
_KIND_NAMES = {"onnx": "an ONNX model", "engine": "an engine"}
_MEMORY = "in memory"
_ATTEMPTS = 5

A = TypeVar("A", bound="Artifact")


class Artifact:
    """A model between two stages: facts and files. Equal only to itself; a copy is the artifact itself."""

    kind: ClassVar[str]
    _travelling: ClassVar[tuple[str, ...]]  # the files that a pickle takes along
    _needed: ClassVar[tuple[str, ...]]  # the files that it can't do without, if the manifest lists them

    __slots__ = ("__weakref__", "_content", "_facts")

    _facts: Facts
    _content: Content

    @property
    def signature(self) -> Signature:
        """What a call takes and gives."""
        return self._facts.signature

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The optimization profiles, in the engine's order."""
        return self._facts.profiles

    @property
    def precision(self) -> str:
        """The arithmetic: "fp32", "tf32", "fp16" or "bf16"."""
        return self._facts.precision

    @property
    def versions(self) -> Mapping[str, str]:
        """Library -> version, of what made this artifact."""
        return self._facts.versions

    @property
    def folder(self) -> Path:
        """The folder with the files, absolute; an artifact that came in memory is written to a scratch folder first."""
        return self._content.folder

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files, without the manifest."""
        return self._content.names

    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON values, for a state_dict say; hashes the files whose hash is not known yet.

        Raises:
            ArtifactError: a file can't be read.
        """
        return compose(self._facts, {name: self._content.record(name) for name in self.files})[0]

    @classmethod
    def from_manifest(cls: type[A], manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> A:
        """The inverse of `manifest()`, in memory.

        Args:
            manifest: as `manifest()` returned it.
            files: file name -> bytes, not copied and not to be changed any more. Of an engine only the plan must be
                there; other files that the manifest lists may be left out and are then gone. Of an ONNX model the model
                and its external data must be there.

        Raises:
            ArtifactError: the manifest is not valid, or the bytes are not those that it lists.
        """
        try:
            data = canonical(manifest)
        except (TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(f"artifact '{_MEMORY}'", got=f"its manifest is not JSON ({error})") from error
        artifact = cls._from_memory(data, files)
        artifact._content.verify()
        return artifact

    def without_weights(self: A) -> A:
        """The same without the way in which its weights follow from a module's, if it has that."""
        return self.from_parts(self._facts, self._content.replaced(WEIGHTS, None)) if WEIGHTS in self.files else self

    def read(self, name: str) -> bytes:
        """One file's bytes, checked against the manifest.

        Raises:
            ArtifactError: there is no such file, or it was changed.
        """
        if name not in self.files:
            held = ", ".join(self.files)
            raise ArtifactError(f"artifact '{self._content}'", got=f"it holds no '{name}'", allowed=f"it holds {held}")
        return bytes(self._content.read(name))

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the artifact to a folder, which appears whole or not at all.

        Args:
            path: the folder; its parent is made if missing. An artifact that is there is replaced in one step: at
                every moment, a crash included, loading `path` gives the whole old one or the whole new one.
            overwrite: False refuses to replace.

        Returns:
            the folder.

        Raises:
            ArtifactError: something that is not a torch2engine artifact is there, a file of this artifact was changed,
                or the disk refused.
        """
        target = Path(path)
        with disk_errors(target):
            # Through a symbolic link the folder that it points to is replaced, never the link.
            put_folder(Path(os.path.realpath(target)), self._write, lambda there: _check_replaceable(there, overwrite))
        return target

    def link_into(self, folder: Path) -> None:
        """Give the files a second name in another folder, by hard links where possible, else copy them."""
        self._content.link_into(folder)

    def linked(self: A) -> A:
        """The same artifact in a scratch folder, where it outlives the folder that it lies in now.

        Raises:
            ArtifactError: a file can neither be linked nor copied.
        """
        owner = scratch_folder()
        self._content.link_into(owner.path)
        content = Content(folder=owner.path, owner=owner, names=self.files)
        content.inherit(self._content)
        return self.from_parts(self._facts, content)

    def _write(self, folder: Path) -> None:
        records = self._content.copy_into(folder)
        write_file(folder / NAME, compose(self._facts, records)[1])

    @classmethod
    def load(cls: type[A], path: str | os.PathLike[str]) -> A:
        """Load a saved artifact of this kind; see `load_artifact`."""
        return cls.from_parts(*load_parts(path, cls.kind))

    @classmethod
    def from_parts(cls: type[A], facts: Facts, content: Content) -> A:
        """Put together what was checked already; for this package's own use."""
        artifact = cls.__new__(cls)
        artifact._fill(facts, content)
        return artifact

    def _fill(self, facts: Facts, content: Content) -> None:
        self._facts = facts
        self._content = content

    def _fill_from_folder(
        self, facts: Facts, folder: str | os.PathLike[str], owner: object, names: Iterable[str]
    ) -> None:
        """Take over what a stage wrote into a folder."""
        place = Path(folder).absolute()
        present = [name for name in names if (place / name).is_file()]
        _check_complete(present, (_MAIN[facts.kind],), str(place))
        self._fill(facts, Content(folder=place, owner=owner, names=present))

    @classmethod
    def _from_memory(cls: type[A], manifest: bytes, files: Mapping[str, Any]) -> A:
        facts, records = parse(manifest, _MEMORY)
        _check_kind(facts, cls.kind, _MEMORY)
        memory: dict[str, bytes | memoryview] = {}
        for name, data in files.items():
            if name not in records:
                allowed = f"its manifest lists {', '.join(records)}"
                raise ArtifactError(f"artifact '{_MEMORY}'", got=f"'{name}' was given", allowed=allowed)
            memory[name] = data if isinstance(data, bytes) else memoryview(data).cast("B").toreadonly()
        _check_complete(memory, (_MAIN[facts.kind], *(name for name in cls._needed if name in records)), _MEMORY)
        return cls.from_parts(facts, Content(memory=memory, records={name: records[name] for name in memory}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self._content}', precision={self.precision!r})"

    def __copy__(self: A) -> A:
        return self

    def __deepcopy__(self: A, memo: dict[int, Any]) -> A:
        return self  # nothing in it can change, and a plan may have gigabytes

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        names = [name for name in self.files if name in self._travelling]
        contents = {name: self._content.read(name) for name in names}
        manifest = compose(self._facts, {name: self._content.record(name) for name in names})[1]
        carry: Any = pickle.PickleBuffer if protocol.__index__() >= 5 else bytes
        # Whoever unpickles hashes the bytes when they are first read: handing an engine to a process stays quick.
        return self._from_memory, (manifest, {name: carry(data) for name, data in contents.items()})


def load_parts(path: str | os.PathLike[str], kind: str | None, keep: Collection[str] = ()) -> tuple[Facts, Content]:
    """Read and check a saved artifact of one kind, or of either if None.

    Args:
        path: the folder.
        kind: "onnx", "engine" or None.
        keep: files whose checked bytes wait in memory for their first use.

    Raises:
        ArtifactError: see `load_artifact`.
    """
    folder = Path(path).absolute()
    for _ in range(_ATTEMPTS):
        place = _place(folder)
        before = identity(place)
        try:
            return _load_once(place, kind, keep)
        except ArtifactError:
            # Somebody saved a new artifact here while this one was being read: what was read is half of each.
            if identity(_place(folder)) == before:
                raise
    return _load_once(_place(folder), kind, keep)


def _place(folder: Path) -> Path:
    """The folder itself, or the old one put aside if a crash kept a replacement from its second step."""
    if identity(folder) is None and folder.name and identity(previous(folder)) is not None:
        return previous(folder)
    return folder


def _load_once(folder: Path, kind: str | None, keep: Collection[str]) -> tuple[Facts, Content]:
    path = str(folder)
    with disk_errors(folder):
        if not folder.is_dir():
            got = "it is a file" if folder.exists() else "there is no such folder"
            fix = "give the folder that torch2engine saved"
            raise ArtifactError(f"artifact '{path}'", got=got, fix=fix, path=path)
    with disk_errors(folder, NAME):
        data = read_file(folder / NAME, LIMIT_BYTES)
    facts, records = parse(data, path)
    if kind is not None:
        _check_kind(facts, kind, path)
    _check_complete(records, (_MAIN[facts.kind],), path)
    content = Content(folder=folder, names=records, records=records)
    content.verify(keep)
    return facts, content


def _check_kind(facts: Facts, kind: str, path: str) -> None:
    if facts.kind != kind:
        raise ArtifactError(
            f"artifact '{path}'",
            got=f"it is {_KIND_NAMES[facts.kind]}",
            allowed=f"{_KIND_NAMES[kind]} is needed here",
            fix="build it first: t2e.build(...)" if kind == "engine" else "",
            path=path,
        )


def _check_complete(names: Iterable[str], needed: Sequence[str], path: str) -> None:
    missing = [name for name in needed if name not in set(names)]
    if missing:
        fix = "save it again or restore it from a copy"
        raise ArtifactError(f"artifact '{path}'", got=f"it holds no '{missing[0]}'", fix=fix, path=path)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Let only a torch2engine artifact be replaced, and only if nothing of somebody else's is in it."""
    subject = f"artifact '{path}'"
    fix = "save to another path, or move away what is there"
    if not overwrite:
        raise ArtifactError(
            subject,
            got="something is there already",
            allowed="overwrite=False replaces nothing",
            fix=fix,
            path=str(path),
        )
    allowed = "only a torch2engine artifact is replaced"
    before, claimed = identity(path), None
    got = "a folder without a torch2engine manifest is there already"
    if not path.is_dir():
        got = "a file is there already"
    else:
        with contextlib.suppress(OSError):
            claimed = claimed_files(read_file(path / NAME, LIMIT_BYTES))
    if claimed is None:
        if before is None or identity(path) != before:
            raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))  # whoever saves looks again
        raise ArtifactError(subject, got=got, allowed=allowed, fix=fix, path=str(path))
    foreign = sorted({entry.name for entry in path.iterdir()} - claimed - {NAME, *ALL_FILES})
    if foreign:
        got = f"the artifact that is there also holds '{foreign[0]}', which torch2engine did not write"
        raise ArtifactError(subject, got=got, fix=f"move '{foreign[0]}' away", path=str(path / foreign[0]))
