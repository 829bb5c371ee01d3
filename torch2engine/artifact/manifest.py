"""The facts of an artifact ↔ the bytes of its `manifest.json`.

Enters: facts that a stage settled, or bytes that somebody else may have damaged. Leaves: canonical bytes, or facts
that were checked down to the last field. Apart from `artifact` because nothing here touches the disk.

The bytes are canonical: ASCII, sorted keys, one space of indent per level, a newline at the end. The field "digest" is
the SHA-256 of the canonical bytes of all other fields. These two rules, "format" and "format_version" mean the same in
every version of the format, so an older torch2engine can tell a newer artifact from a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from torch2engine.artifact.file_access import FileRecord
from torch2engine.artifact.schema import FILE_NAME, SchemaError, check_facts, fields, integer, text
from torch2engine.core.errors import ArtifactError, Torch2EngineError
from torch2engine.core.spec import Profile, Signature

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LIMIT_BYTES",
    "NAME",
    "Hardware",
    "ManifestFields",
    "canonical",
    "claimed_files",
    "encode_non_finite",
    "manifest_json",
    "parse_manifest",
    "write_manifest",
]

FORMAT = "torch2engine"
FORMAT_VERSION = 1
NAME = "manifest.json"
LIMIT_BYTES = 16 << 20

_FACTS = ("kind", "signature", "profiles", "precision", "versions", "hardware")
_AGAIN = "save it again or restore it from a copy"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where an engine was built, or where it is to run.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".
        flavour_version: the library's version, e.g. ``"10.16.1.11"``; a plan belongs to its major.minor.patch.
        gpu: the GPU's name; None if none was visible.
        compute_capability: (major, minor) of that GPU.
        driver: the driver's version.
        compute_capabilities: what the plan was built for, if it was built for more than the GPU at hand; else empty.
    """

    flavour: str
    flavour_version: str
    gpu: str | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    compute_capabilities: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "flavour": self.flavour,
            "flavour_version": self.flavour_version,
            "gpu": self.gpu,
            "compute_capability": None if self.compute_capability is None else list(self.compute_capability),
            "driver": self.driver,
            "compute_capabilities": [list(pair) for pair in self.compute_capabilities],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Hardware:
        """The inverse of `to_json`."""
        pair = data["compute_capability"]
        return cls(
            flavour=data["flavour"],
            flavour_version=data["flavour_version"],
            gpu=data["gpu"],
            compute_capability=None if pair is None else (pair[0], pair[1]),
            driver=data["driver"],
            compute_capabilities=tuple((major, minor) for major, minor in data["compute_capabilities"]),
        )


@dataclass(frozen=True, kw_only=True)
class ManifestFields:
    """Everything that a manifest says apart from its files.

    Raises:
        ArtifactError: the facts contradict themselves or could not be read back.
    """

    kind: str
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str
    versions: Mapping[str, str]
    hardware: Hardware | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        try:
            check_facts(self.to_json())
        except SchemaError as wrong:
            raise ArtifactError(f"{self.kind} artifact", got=wrong.got, allowed=wrong.allowed) from None
        except RecursionError:
            raise ArtifactError(f"{self.kind} artifact", got="the signature is nested too deeply") from None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        data: dict[str, Any] = {
            "kind": self.kind,
            "signature": encode_non_finite(self.signature.to_json()),
            "profiles": [profile.to_json() for profile in self.profiles],
            "precision": self.precision,
            "versions": dict(self.versions),
        }
        return data if self.hardware is None else {**data, "hardware": self.hardware.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ManifestFields:
        """The inverse of `to_json`, for checked data."""
        return cls(
            kind=data["kind"],
            signature=Signature.from_json(_decode_non_finite(data["signature"])),
            profiles=tuple(Profile.from_json(profile) for profile in data["profiles"]),
            precision=data["precision"],
            versions=data["versions"],
            hardware=Hardware.from_json(data["hardware"]) if "hardware" in data else None,
        )


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
    """Read a manifest and believe nothing.

    Args:
        data: the file's bytes.
        path: what to call the artifact in an error.

    Returns:
        the facts, and the record of every file.

    Raises:
        ArtifactError: not canonical JSON, digest wrong, foreign format, newer version, or a field that is not valid.
    """
    subject = f"artifact '{path}'"
    try:
        return _parsed(data)
    except SchemaError as wrong:
        raise ArtifactError(subject, got=wrong.got, allowed=wrong.allowed, fix=wrong.fix or _AGAIN, path=path) from None
    except (Torch2EngineError, RecursionError) as error:
        reason = str(error) if isinstance(error, Torch2EngineError) else "it is nested too deeply"
        raise ArtifactError(subject, got=f"its manifest is not valid ({reason})", fix=_AGAIN, path=path) from error


def claimed_files(data: bytes) -> frozenset[str] | None:
    """The files that a manifest lists, be it damaged or of a newer version; None if it is not one of torch2engine."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or cast("dict[str, Any]", manifest).get("format") != FORMAT:
        return None
    files = cast("dict[str, Any]", manifest).get("files")
    return frozenset(cast("dict[str, Any]", files)) if isinstance(files, dict) else frozenset()


def _parsed(data: bytes) -> tuple[ManifestFields, dict[str, FileRecord]]:
    try:
        manifest = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    except ValueError:  # also UnicodeDecodeError, JSONDecodeError and numbers too long to convert
        raise SchemaError("its manifest is not JSON in ASCII") from None
    # The format's name comes before the digest: somebody else's manifest.json is foreign, not damaged.
    if not isinstance(manifest, dict) or cast("dict[str, Any]", manifest).get("format") != FORMAT:
        raise SchemaError(
            "its manifest is not one of torch2engine",
            f'its "format" must be {FORMAT!r}',
            "give the folder that torch2engine saved",
        )
    whole = cast("dict[str, Any]", manifest)
    _check_digest(whole, data)
    version = integer(whole.get("format_version"), "format_version", low=1)
    if version > FORMAT_VERSION:
        raise SchemaError(
            f"its format version is {version}",
            f"this torch2engine reads up to {FORMAT_VERSION}",
            "it was made by a newer torch2engine; upgrade",
        )
    hardware = ("hardware",) if "hardware" in whole else ()
    fields(whole, "", ("format", "format_version", "files", "digest", *_FACTS[:-1], *hardware))
    records = _records(whole["files"])
    facts = {name: whole[name] for name in _FACTS if name in whole}
    check_facts(facts)
    return ManifestFields.from_json(facts), records


def _check_digest(manifest: Mapping[str, Any], data: bytes) -> None:
    try:
        same = canonical(manifest) == data and _digest(manifest) == manifest.get("digest")
    except ValueError:  # a number such as 1e999, which no canonical file holds
        same = False
    if not same:
        raise SchemaError("its manifest was changed after it was written", "its bytes must match its own digest")


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({key: manifest[key] for key in manifest if key != "digest"})).hexdigest()


def _records(value: object) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for name, entry in fields(value, "files").items():
        if not FILE_NAME.fullmatch(name) or name == NAME:
            raise SchemaError(f"its manifest lists the file {reprlib.repr(name)}", "plain names inside the folder")
        where = f"files[{name!r}]"
        record = fields(entry, where, ("sha256", "bytes"))
        sha256 = text(record["sha256"], f"{where}.sha256")
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise SchemaError(f"its manifest's {where}.sha256 is {reprlib.repr(sha256)}", "64 lower-case hex digits")
        records[name] = FileRecord(sha256, integer(record["bytes"], f"{where}.bytes"))
    return records


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def encode_non_finite(value: Any) -> Any:
    """JSON values with what JSON can't say spelt out."""
    # JSON has no NaN or infinity, yet a model's default argument may be one (a mask's fill value, say).
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, dict):
        return {key: encode_non_finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [encode_non_finite(item) for item in cast("list[Any]", value)]
    return value


def _decode_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        if items.keys() == {"float"}:
            return float(items["float"])
        return {key: _decode_non_finite(item) for key, item in items.items()}
    if isinstance(value, list):
        return [_decode_non_finite(item) for item in cast("list[Any]", value)]
    return value
