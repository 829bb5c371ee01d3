"""A saved artifact's folder: its file names, how it is read and checked, and when it may be replaced.

Enters: a path. Leaves: manifest fields and files of which every byte was checked. Separate because artifacts of both
kinds are read by the same rules, before anything knows which kind it is.

A saved artifact is a folder::

    model.t2e/
        manifest.json       the manifest fields, and the SHA-256 of every other file
        model.onnx          with its data files beside it, of any names, if the weights are external
        model.plan          the bare TensorRT plan (engines only)
        weights.json        where live weights go (if the engine can be refitted)
        runtime.cache       TensorRT-RTX's compiled kernels (if saved)
        report.json         what deploy() found (if a deployed module was saved)

A model in parts has other files: ``program.pt2``, ``cut.json``, and those of every part's engine, with the engine's
name in front. A bundle has the files of an exported model, and for each plan ``NAME.model.plan`` and, where there are
such, ``NAME.runtime.cache`` and ``NAME.report.json``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch2engine.artifact.atomic_folder import Content, folder_content, folder_identity, previous_folder
from torch2engine.artifact.file_access import FileRecord, OpenFile, read_file
from torch2engine.artifact.files import ArtifactFiles, disk_errors
from torch2engine.artifact.manifest import LIMIT_BYTES, NAME, NOT_JSON, NOT_OURS, parse_manifest, recorded_files
from torch2engine.artifact.manifest_fields import ManifestFields
from torch2engine.core.errors import ArtifactError
from torch2engine.core.foreign_files import cure_for_path
from torch2engine.core.json_rules import SchemaError

__all__ = [
    "CUT",
    "MAIN_FILE",
    "ONNX",
    "PLAN",
    "PROGRAM",
    "REPORT",
    "RUNTIME_CACHE",
    "WEIGHTS",
    "check_complete",
    "check_kind",
    "check_replaceable",
    "plan_file",
    "read_saved_folder",
    "required_files",
]

ONNX = "model.onnx"
PLAN = "model.plan"
WEIGHTS = "weights.json"
RUNTIME_CACHE = "runtime.cache"
REPORT = "report.json"
PROGRAM = "program.pt2"
CUT = "cut.json"
# by kind: the file that every artifact has
MAIN_FILE = {"onnx": ONNX, "engine": PLAN, "parts": PROGRAM, "bundle": ONNX}

_KIND_NAMES = {"onnx": "an ONNX model", "engine": "an engine", "parts": "a model in parts", "bundle": "a bundle"}
_OTHER_KIND_FIXES = {  # (found, expected) -> how to get there
    ("onnx", "engine"): "build it first: t2e.build(...)",
    (
        "bundle",
        "engine",
    ): "take one of its engines: t2e.BundleArtifact.load(path).engine(name)",
    ("bundle", "onnx"): "take its exported model: t2e.BundleArtifact.load(path).exported()",
    ("engine", "bundle"): "make a bundle of it: t2e.bundle(path, [engine])",
}
_ATTEMPTS = 5


def read_saved_folder(
    path: str | os.PathLike[str], kind: str | None, preload: Collection[str] = ()
) -> tuple[ManifestFields, ArtifactFiles]:
    """Read and check a saved artifact of one kind, or of any kind if None.

    The bytes of model.onnx wait in memory for `check_graph`, which the caller calls next.

    Args:
        path: the folder.
        kind: "onnx", "engine", "parts", "bundle" or None.
        preload: names of files whose checked bytes wait in memory for their first use.

    Raises:
        ArtifactError: see `load_artifact`.
    """
    folder = Path(path).absolute()
    for _ in range(_ATTEMPTS):
        place = _current_folder(folder)
        before = folder_identity(place)
        try:
            return _read_once(place, kind, preload)
        except ArtifactError:
            # If another process saved here during the read, the bytes are half of each artifact. Then read again.
            if folder_identity(_current_folder(folder)) == before:
                raise
    return _read_once(_current_folder(folder), kind, preload)


def _current_folder(folder: Path) -> Path:
    """The folder itself, or the old one put aside if a crash stopped a replacement before its second step."""
    if folder_identity(folder) is None and folder.name and folder_identity(previous_folder(folder)) is not None:
        return previous_folder(folder)
    return folder


def _read_once(folder: Path, kind: str | None, preload: Collection[str]) -> tuple[ManifestFields, ArtifactFiles]:
    path = str(folder)
    with disk_errors(folder):
        if not folder.is_dir():
            got = "a file" if folder.exists() else "no such folder"
            fix = cure_for_path(folder) or "give the folder that torch2engine saved"
            raise ArtifactError(f"artifact '{path}'", got=got, allowed="a saved artifact's folder", fix=fix, path=path)
    with disk_errors(folder, NAME):
        data = read_file(folder / NAME, LIMIT_BYTES)
    fields, records = parse_manifest(data, path)
    if kind is not None:
        check_kind(fields, kind, path)
    check_complete(records, required_files(fields), path)
    files = ArtifactFiles(folder=folder, names=records, records=records)
    files.verify({ONNX, *preload})
    return fields, files


def plan_file(plan: str, name: str) -> str:
    """The name in a bundle of a file that belongs to one plan, e.g. ``model.plan``."""
    return f"{plan}.{name}"


def required_files(fields: ManifestFields) -> tuple[str, ...]:
    """The files that an artifact with these fields can't do without."""
    return (MAIN_FILE[fields.kind], *(plan_file(plan, PLAN) for plan in fields.plans or ()))


def check_kind(fields: ManifestFields, kind: str, path: str) -> None:
    """Refuse an artifact of another kind.

    Raises:
        ArtifactError: naming the kind that it has, and the kind that was wanted.
    """
    if fields.kind != kind:
        raise ArtifactError(
            f"artifact '{path}'",
            got=_KIND_NAMES[fields.kind],
            allowed=_KIND_NAMES[kind],
            fix=_OTHER_KIND_FIXES.get((fields.kind, kind), ""),
            path=path,
        )


def check_complete(names: Iterable[str], needed: Sequence[str], path: str) -> None:
    """Refuse an artifact that lacks a needed file.

    Raises:
        ArtifactError: naming the first file that is missing.
    """
    present = set(names)
    missing = [name for name in needed if name not in present]
    if missing:
        fix = "save it again or restore it from a copy"
        raise ArtifactError(
            f"artifact '{path}'", got=f"no '{missing[0]}'", allowed="every file that it needs", fix=fix, path=path
        )


def check_replaceable(path: Path, overwrite: bool) -> Content:
    """Let only a torch2engine artifact be replaced, and only if nobody has changed its files.

    Returns:
        what is there: every file is of the hash that an undamaged manifest records.

    Raises:
        ArtifactError: what is there must stay.
        FileNotFoundError: another process replaced it during this check; the caller then checks again.
    """
    if not overwrite:
        allowed = "nothing there, since overwrite=False replaces nothing"
        raise _must_stay(path, got="something at that path", allowed=allowed)
    before = folder_identity(path)
    content: Content = {}
    refusal: ArtifactError | None = None
    try:
        content = folder_content(path)
        records = recorded_files(read_file(path / NAME, LIMIT_BYTES))
    except (OSError, SchemaError) as error:
        got = f"{_describe_unreadable(path, error)} at that path"
        refusal = _must_stay(path, got=got, allowed="a torch2engine artifact, which alone is replaced")
    else:
        foreign = _foreign_files(path, content, records)
        if foreign:
            refusal = _must_stay(
                path,
                got=f"an artifact at that path with '{foreign[0]}', which torch2engine did not write",
                allowed="files of torch2engine alone",
                fix=f"move '{foreign[0]}' away",
                inside=foreign[0],
            )
    if refusal is not None:
        if before is None or folder_identity(path) != before:
            raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))
        raise refusal
    return content


def _must_stay(
    path: Path,
    *,
    got: str,
    allowed: str,
    fix: str = "save to another path, or move away what is there",
    inside: str = "",
) -> ArtifactError:
    return ArtifactError(f"artifact '{path}'", got=got, allowed=allowed, fix=fix, path=str(path / inside))


def _describe_unreadable(path: Path, error: Exception) -> str:
    """Name what is at the path instead of an artifact with a valid manifest."""
    if not path.is_dir():
        return "a file"
    if isinstance(error, SchemaError) and error.got not in (NOT_JSON, NOT_OURS):
        return f"an artifact with {error.got}"
    return "a folder without a torch2engine manifest"


def _foreign_files(path: Path, content: Content, records: Mapping[str, FileRecord]) -> list[str]:
    """The names of what is not a file that the manifest records, byte for byte."""
    foreign: list[str] = []
    for name in sorted(content.keys() - {NAME}):
        expected = records.get(name)
        try:
            if expected is None or OpenFile(path / name).record() != expected:
                foreign.append(name)
        except OSError:  # a link, a folder or a pipe, or nobody may read it
            foreign.append(name)
    return foreign
