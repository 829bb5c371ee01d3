"""`Artifact`, which all kinds share: manifest fields and files that never change, saving, loading, pickling.

Enters: a folder, or bytes with their manifest. Leaves: `Artifact`, every byte of it checked. Separate so that
`onnx_artifact`, `engine_artifact`, `parts_artifact` and `bundle_artifact` hold only what differs between them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar

from torch2engine.artifact.atomic_folder import Replacement, put_folder
from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import ArtifactFiles, disk_errors
from torch2engine.artifact.manifest import (
    NAME,
    ManifestFields,
    canonical,
    manifest_json,
    parse_manifest,
    write_manifest,
)
from torch2engine.artifact.model_graph import check_graph, data_files_in
from torch2engine.artifact.saved_folder import (
    REPORT,
    WEIGHTS,
    check_complete,
    check_kind,
    check_replaceable,
    read_saved_folder,
    required_files,
)
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.json_rules import is_object
from torch2engine.core.live_parameter_data import decode_value, encode_value
from torch2engine.core.pytree import container_classes
from torch2engine.core.spec import Profile, Signature
from torch2engine.core.wording import kind_of, with_article

__all__ = ["Artifact", "require_artifact"]

_MEMORY = "in memory"
_AS_IT_WAS = "pass what manifest() and read() gave, as it was"

A = TypeVar("A", bound="Artifact")


class Artifact:
    """A model between two stages: manifest fields and files.

    An artifact is equal only to itself, and a copy is the artifact itself.
    """

    kind: ClassVar[str]
    _known_files: ClassVar[tuple[str, ...]]  # files that the constructor takes from its folder, beside data files

    __slots__ = ("__weakref__", "_artifact_files", "_fields")

    _fields: ManifestFields
    _artifact_files: ArtifactFiles

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of a call."""
        return self._fields.signature

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The optimization profiles, in the engine's order."""
        return self._fields.profiles

    @property
    def precision(self) -> str:
        """The arithmetic: a name of the table of precisions, e.g. "fp32" or "int8"."""
        return self._fields.precision

    @property
    def versions(self) -> Mapping[str, str]:
        """Library -> version, of what made this artifact."""
        return self._fields.versions

    @property
    def influences(self) -> Mapping[str, str | None]:
        """{axis: the operator that lets its entries influence each other, None where none does}.

        An axis that nobody has analysed is missing.
        """
        return self._fields.influences or {}

    @property
    def live_values(self) -> Mapping[str, bytes]:
        """{input: bytes of the live parameter that feeds it}, C-contiguous; see `Signature.live_inputs`."""
        return {name: decode_value(text) for name, text in (self._fields.live_values or {}).items()}

    def with_live_values(self: A, values: Mapping[str, bytes]) -> A:
        """The same with other values of live parameters; this one stays as it is.

        Args:
            values: as `live_values` gives them, for every live parameter.

        Raises:
            ArtifactError: one is missing, or has another size.
        """
        return self.replace(live_values={name: encode_value(value) for name, value in values.items()})

    @property
    def folder(self) -> Path:
        """The folder with the files, absolute; an artifact that came in memory is written to a scratch folder first."""
        return self._artifact_files.folder

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files, without the manifest."""
        return self._artifact_files.names

    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON values, for a state_dict say; hashes the files whose hash is not known yet.

        Raises:
            ArtifactError: a file can't be read.
        """
        return manifest_json(self._fields, {name: self._artifact_files.record(name) for name in self.files})

    @classmethod
    def from_manifest(cls: type[A], manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> A:
        """Make an artifact in memory: the inverse of `manifest()`.

        Args:
            manifest: as `manifest()` returned it.
            files: file name -> bytes, not copied and not to be changed any more. An engine needs its plan only; the new
                artifact lacks the other listed files that are not given. Of an ONNX model the model and its external
                data must be there.

        Raises:
            ArtifactError: the manifest is not valid, or the bytes are not those that it lists.
        """
        try:
            data = canonical(manifest)
        except (TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"artifact '{_MEMORY}'",
                got=f"a manifest that is not JSON ({error})",
                allowed="JSON values",
                fix=_AS_IT_WAS,
            ) from error
        artifact = cls._from_memory(data, files)
        artifact._artifact_files.verify()
        check_graph(artifact.signature, artifact._artifact_files)
        return artifact

    def replace(self: A, folder: Path | None = None, owner: object = None, **fields: Any) -> A:
        """Make the same artifact with other manifest fields; this one stays as it is.

        A new manifest field needs no change where this is called: every field that is not given is taken over.

        Args:
            folder: the files of this folder take the place of the artifact's own ones; None keeps these.
            owner: an object to hold as long as the folder is needed.
            fields: fields of `ManifestFields` by name, e.g. ``precision="fp16"``.

        Raises:
            ArtifactError: the folder lacks the main file, or the fields contradict themselves.
        """
        new_fields = dataclasses.replace(self._fields, **fields)
        if folder is None:
            return self.from_parts(new_fields, self._artifact_files)
        artifact = type(self).__new__(type(self))
        artifact._take_folder(new_fields, folder, owner)
        return artifact

    def without_weights(self: A) -> A:
        """A copy without the weight program, by which its weights follow from a module's; itself if it has none."""
        return self._with_files({WEIGHTS: None}) if WEIGHTS in self.files else self

    def with_report(self: A, report: Mapping[str, Any] | None) -> A:
        """The same with what deploy() found, as JSON values; None leaves it out."""
        return self._with_files({REPORT: None if report is None else json.dumps(report).encode()})

    def read_report(self) -> dict[str, Any] | None:
        """What deploy() found, as `with_report` took it; None if the artifact comes without it.

        Raises:
            ArtifactError: the file is no JSON object, or was changed.
        """
        if REPORT not in self.files:
            return None
        try:
            data: object = json.loads(self.read(REPORT))
        except ValueError:
            data = None
        if not is_object(data):
            raise ArtifactError(
                f"artifact '{self._artifact_files}'",
                got=f"a {REPORT} that is no JSON object",
                allowed="the report that save() wrote",
                fix="save the deployed module again",
                path=str(self._artifact_files),
            )
        return data

    def read(self, name: str) -> bytes:
        """Read one file's bytes and check them against the manifest.

        Raises:
            ArtifactError: there is no such file, or it was changed.
        """
        if name not in self.files:
            held = ", ".join(self.files)
            raise ArtifactError(
                f"artifact '{self._artifact_files}'",
                got=f"no '{name}'",
                allowed=f"one of {held}",
                fix="use one of these names",
            )
        return bytes(self._artifact_files.read(name))

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the artifact to a folder, which appears whole or not at all.

        Args:
            path: the folder; its parent is made if missing. An artifact that is there is replaced in one step. At every
                moment, even after a crash, `path` is the whole old one or the whole new one.
            overwrite: False refuses to replace.

        Returns:
            the folder.

        Raises:
            ArtifactError: the path holds anything but an undamaged torch2engine artifact, a file of this artifact was
                changed, or the disk refused.
        """
        target = Path(path)
        with disk_errors(target):
            # Through a symbolic link the folder that it points to is replaced, never the link.
            replacement = Replacement(
                check=lambda there: check_replaceable(there, overwrite),
                check_leftover=lambda there: check_replaceable(there, True),
            )
            put_folder(Path(os.path.realpath(target)), self._write, replacement)
        return target

    def link_into(self, folder: Path) -> None:
        """Give the files a second name in another folder, by hard links where possible, else copy them."""
        self._artifact_files.link_into(folder)

    def copy_files(self, folder: Path, names: Collection[str]) -> None:
        """Copy some of the files into another folder, every byte checked, down to the disk.

        Raises:
            ArtifactError: a file was changed, or the disk refused.
        """
        others = {name: None for name in self.files if name not in names}
        with disk_errors(folder):
            self._artifact_files.replaced(others).copy_into(folder)

    def in_private_folder(self: A) -> A:
        """The same artifact where only this process writes, every file checked as it was copied; itself if it is there.

        So several steps, such as a build and its cache key, read the same bytes.

        Raises:
            ArtifactError: a file was changed, or there is no room for the copy.
        """
        files = self._artifact_files.in_private_folder()
        return self if files is self._artifact_files else self.from_parts(self._fields, files)

    def linked(self: A) -> A:
        """The same artifact in a scratch folder, so that it outlives its present folder.

        Raises:
            ArtifactError: a file can neither be linked nor copied.
        """
        owner = scratch_folder()
        self._artifact_files.link_into(owner.path)
        files = ArtifactFiles(folder=owner.path, owner=owner, names=self.files)
        files.take_records(self._artifact_files)
        return self.from_parts(self._fields, files)

    def _write(self, folder: Path) -> None:
        records = self._artifact_files.copy_into(folder)
        write_file(folder / NAME, write_manifest(self._fields, records))

    @classmethod
    def load(cls: type[A], path: str | os.PathLike[str]) -> A:
        """Load a saved artifact of this kind; see `load_artifact`."""
        fields, files = read_saved_folder(path, cls.kind)
        check_graph(fields.signature, files)
        return cls.from_parts(fields, files)

    @classmethod
    def from_parts(cls: type[A], fields: ManifestFields, files: ArtifactFiles) -> A:
        """Put together parts that were checked already; for this package's own use."""
        artifact = cls.__new__(cls)
        artifact._fields = fields
        artifact._artifact_files = files
        return artifact

    def _with_files(self: A, changes: Mapping[str, bytes | None]) -> A:
        """The same artifact with other bytes for some files, or without files whose bytes are None."""
        return self.from_parts(self._fields, self._artifact_files.replaced(changes))

    @classmethod
    def _is_pickled(cls, name: str) -> bool:
        """Whether a pickle takes this file along."""
        return True

    @classmethod
    def _is_needed(cls, name: str) -> bool:
        """Whether this file must be given if the manifest lists it."""
        return True

    def _take_folder(
        self, fields: ManifestFields, folder: str | os.PathLike[str], owner: object, is_private: bool = True
    ) -> None:
        """Set the parts of a new artifact from the files that a stage wrote into a folder.

        Args:
            fields: what the manifest says.
            folder: where the files are; a folder with an owner belongs to this process.
            owner: an object to hold as long as the folder is needed.
            is_private: whether no file of such a folder is a hard link to somebody else's file.
        """
        place = Path(folder).absolute()
        present = [name for name in self._known_files if (place / name).is_file()]
        present += data_files_in(place)
        check_complete(present, required_files(fields), str(place))
        self._fields = fields
        is_private = is_private and owner is not None
        self._artifact_files = ArtifactFiles(folder=place, owner=owner, names=present, is_private=is_private)

    @classmethod
    def _from_memory(cls: type[A], manifest: bytes, files: Mapping[str, Any], classes: Sequence[type] = ()) -> A:
        fields, records = parse_manifest(manifest, _MEMORY)
        check_kind(fields, cls.kind, _MEMORY)
        memory: dict[str, bytes | memoryview] = {}
        for name, data in files.items():
            if name not in records:
                allowed = f"files of its manifest: {', '.join(records)}"
                raise ArtifactError(f"artifact '{_MEMORY}'", got=f"a file '{name}'", allowed=allowed, fix=_AS_IT_WAS)
            memory[name] = data if isinstance(data, bytes) else memoryview(data).cast("B").toreadonly()
        needed = [name for name in records if cls._is_needed(name)]
        check_complete(memory, (*required_files(fields), *needed), _MEMORY)
        return cls.from_parts(fields, ArtifactFiles(memory=memory, records={name: records[name] for name in memory}))

    def _refusal(self, got: str, allowed: str, fix: str) -> ArtifactError:
        where = str(self._artifact_files)
        return ArtifactError(f"artifact '{where}'", got=got, allowed=allowed, fix=fix, path=where)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self._artifact_files}', precision={self.precision!r})"

    def __copy__(self: A) -> A:
        return self

    def __deepcopy__(self: A, memo: dict[int, Any]) -> A:
        return self  # nothing in it can change, and a plan may have gigabytes

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        names = [name for name in self.files if self._is_pickled(name)]
        contents = {name: self._artifact_files.read(name) for name in names}
        manifest = write_manifest(self._fields, {name: self._artifact_files.record(name) for name in names})
        wrap: Any = pickle.PickleBuffer if protocol.__index__() >= 5 else bytes
        # The receiver hashes the bytes at the first read, so that handing an engine to a process stays quick.
        # A pickle imports the result's classes, as it does with everything in it; a manifest may not.
        classes = container_classes(self.signature.output)
        return self._from_memory, (manifest, {name: wrap(data) for name, data in contents.items()}, classes)


def require_artifact(subject: str, artifact: object, kind: type[Artifact]) -> None:
    """Refuse what is no artifact of the kind that a module runs.

    Raises:
        InputError: showing how to load one.
    """
    if isinstance(artifact, kind):
        return
    is_path = isinstance(artifact, (str, Path))
    load = f"torch2engine.load({str(artifact)!r})" if is_path else f"torch2engine.{kind.__name__}.load(path)"
    raise InputError(
        subject,
        got=f"{str(artifact)!r}" if is_path else kind_of(artifact),
        allowed=with_article(kind.__name__),
        fix=f"use the module that {load} gives" if is_path else f"read one with {load}",
    )
