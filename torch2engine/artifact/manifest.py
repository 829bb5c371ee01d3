"""Manifest fields and file records ↔ the bytes of `manifest.json`.

Enters: fields and records, or bytes that somebody else may have damaged. Leaves: canonical bytes, or fields and records
of which every one was checked. Separate from `artifact` because nothing here touches the disk.

The bytes are canonical: ASCII, sorted keys, one space of indent per level, a newline at the end. The field "digest" is
the SHA-256 of the canonical bytes of all other fields. These two rules, "format" and "format_version" mean the same in
every version of the format, so an older torch2engine can tell a newer artifact from a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from typing import Any

from torch2engine.artifact.file_access import FileRecord
from torch2engine.artifact.manifest_fields import FILE_NAME, ManifestFields, check_fields, field_names
from torch2engine.core.errors import ArtifactError, Torch2EngineError
from torch2engine.core.json_rules import TEXT, SchemaError, check_names, field_error, integer, is_object

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LIMIT_BYTES",
    "NAME",
    "NOT_JSON",
    "NOT_OURS",
    "canonical",
    "manifest_json",
    "parse_manifest",
    "recorded_files",
    "write_manifest",
]

FORMAT = "torch2engine"
FORMAT_VERSION = 1
NAME = "manifest.json"
LIMIT_BYTES = 16 << 20

NOT_JSON = "a manifest that is not JSON in ASCII"
NOT_OURS = "a manifest that is not one of torch2engine"

_ENVELOPE = ("format", "format_version", "files", "digest")
_AGAIN = "save it again or restore it from a copy"


def manifest_json(fields: ManifestFields, records: Mapping[str, FileRecord]) -> dict[str, Any]:
    """The manifest of an artifact as plain JSON values, digest included."""
    files = {name: {"sha256": record.sha256, "bytes": record.size_bytes} for name, record in records.items()}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **fields.to_json(), "files": files}
    return {**manifest, "digest": _digest(manifest)}


def write_manifest(fields: ManifestFields, records: Mapping[str, FileRecord]) -> bytes:
    """The manifest of an artifact as canonical bytes."""
    return canonical(manifest_json(fields, records))


def canonical(data: Mapping[str, Any]) -> bytes:
    """Write JSON values in the one canonical form."""
    return (json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def parse_manifest(data: bytes, path: str) -> tuple[ManifestFields, dict[str, FileRecord]]:
    """Read a manifest, which may be damaged or forged, and check all of it.

    Args:
        data: the file's bytes.
        path: the artifact's path, for an error.

    Returns:
        the fields, and the record of every file.

    Raises:
        ArtifactError: not canonical JSON, digest wrong, foreign format, newer version, or a field that is not valid.
    """
    subject = f"artifact '{path}'"
    try:
        return _parsed(data)
    except SchemaError as error:
        raise ArtifactError(subject, got=error.got, allowed=error.allowed, fix=error.fix or _AGAIN, path=path) from None
    except (Torch2EngineError, RecursionError) as error:
        reason = str(error) if isinstance(error, Torch2EngineError) else "nested too deeply"
        raise ArtifactError(
            subject,
            got=f"a manifest that is not valid ({reason})",
            allowed="one that torch2engine wrote",
            fix=_AGAIN,
            path=path,
        ) from error


def recorded_files(data: bytes) -> dict[str, FileRecord]:
    """The record of every file, of a manifest of any version.

    Raises:
        SchemaError: not a manifest of torch2engine, damaged, or of a version that records files otherwise.
    """
    try:
        return _records(_checked_manifest(data).get("files"))
    except RecursionError:
        raise SchemaError(NOT_JSON) from None


def _checked_manifest(data: bytes) -> dict[str, Any]:
    """The manifest as JSON values, undamaged; what every version of the format has in common is checked."""
    try:
        manifest = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    except ValueError:  # also UnicodeDecodeError, JSONDecodeError and numbers too long to convert
        raise SchemaError(NOT_JSON) from None
    # The format's name comes before the digest: somebody else's manifest.json is foreign, not damaged.
    if not is_object(manifest) or manifest.get("format") != FORMAT:
        raise SchemaError(
            NOT_OURS,
            f'"format": {FORMAT!r} in it',
            "give the folder that torch2engine saved",
        )
    _check_digest(manifest, data)
    return manifest


def _parsed(data: bytes) -> tuple[ManifestFields, dict[str, FileRecord]]:
    manifest = _checked_manifest(data)
    version: Any = manifest.get("format_version")
    integer(1).check(version, "format_version")
    if version > FORMAT_VERSION:
        raise SchemaError(
            f"format version {version}",
            f"at most {FORMAT_VERSION}, which this torch2engine reads",
            "it was made by a newer torch2engine; upgrade",
        )
    names = field_names(manifest)
    check_names(manifest, "", (*_ENVELOPE, *names))
    records = _records(manifest["files"])
    fields = {name: manifest[name] for name in names}
    check_fields(fields)
    return ManifestFields.from_json(fields), records


def _check_digest(manifest: Mapping[str, Any], data: bytes) -> None:
    try:
        same = canonical(manifest) == data and _digest(manifest) == manifest.get("digest")
    except ValueError:  # a number such as 1e999, which no canonical file holds
        same = False
    if not same:
        raise SchemaError("a manifest that was changed after it was written", "bytes that match its own digest")


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({key: manifest[key] for key in manifest if key != "digest"})).hexdigest()


def _records(value: object) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for name, entry in check_names(value, "files").items():
        if not FILE_NAME.fullmatch(name) or name == NAME:
            raise SchemaError(f"the file {reprlib.repr(name)} in its manifest", "plain names inside the folder")
        where = f"files[{name!r}]"
        record = check_names(entry, where, ("sha256", "bytes"))
        sha256 = record["sha256"]
        TEXT.check(sha256, f"{where}.sha256")
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise field_error(sha256, f"{where}.sha256", "64 lower-case hex digits")
        integer().check(record["bytes"], f"{where}.bytes")
        records[name] = FileRecord(sha256, record["bytes"])
    return records


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
