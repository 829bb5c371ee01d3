"""The fields of a manifest: one field of a class here and one row of its table each.

Enters: values that a stage found, or JSON values that somebody else may have changed. Leaves: frozen values that were
checked, alone and together. Separate from `manifest` so that a new field changes this file alone.

To add a field, give `ManifestFields` a field with a default and `_MANIFEST_JSON` a row. Name it in `optional`, so that
artifacts without it still load. `Artifact` hands it on unchanged and may show it as a property.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from torch2engine.core.config import FLAVOURS, HardwareCompatibility
from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import (
    TEXT,
    ByName,
    Items,
    Object,
    Optional,
    SchemaError,
    check_names,
    field_error,
    integer,
    is_array,
    is_object,
    plain,
    word,
)
from torch2engine.core.live_parameter_data import check_live_values
from torch2engine.core.precisions import MODEL_PRECISIONS
from torch2engine.core.spec import PROFILE_JSON, SIGNATURE_JSON, Profile, Signature

__all__ = [
    "FILE_NAME",
    "BundledPlan",
    "Hardware",
    "ManifestFields",
    "check_fields",
    "decode_non_finite",
    "differing_field",
    "encode_non_finite",
    "field_names",
]

# No separators, no leading dot, no drive: such a name can't leave the folder on any system.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")

_KINDS = ("onnx", "engine", "parts", "bundle")
_NOT_OF_THE_MODEL = ("kind", "hardware", "versions", "plans")  # what may differ between engines of one model
_FITTING = "fields that fit together"
_FIX = "correct that field"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware and versions on which an engine was built, or on which it is to run.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".
        flavour_version: the library's version, e.g. ``"10.16.1.11"``; a plan belongs to its major.minor.patch.
        gpu: the GPU's name; None if no GPU was visible.
        compute_capability: (major, minor) of that GPU.
        driver: the driver's version.
        compute_capabilities: those that the plan was built for, if there are others than the present GPU's; else
            empty.
        hardware_compatibility: a word of `BuildConfig`, if the plan was built for other GPUs of TensorRT, too.
    """

    flavour: str
    flavour_version: str
    gpu: str | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    hardware_compatibility: str | None = None


@dataclass(frozen=True, kw_only=True)
class BundledPlan:
    """One plan of a bundle.

    Args:
        hardware: flavour, versions and GPU of its build.
        versions: library -> version, of what made it.
    """

    hardware: Hardware
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ManifestFields:
    """Everything that a manifest says apart from its files.

    Args:
        influences: {axis: the operator that lets its entries influence each other, or None}. None instead of the dict
            if nobody has analysed the ONNX graph.
        live_values: {input: value of the live parameter that feeds it, as text}. None without live parameters.
        plans: {name: plan} of a bundle; its files have that name in front. None for any other kind.

    Raises:
        ArtifactError: the fields contradict each other or could not be read back.
    """

    kind: str
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str
    versions: Mapping[str, str]
    hardware: Hardware | None = None
    influences: Mapping[str, str | None] | None = None
    live_values: Mapping[str, str] | None = None
    plans: Mapping[str, BundledPlan] | None = None

    def __post_init__(self) -> None:
        for name in ("versions", "influences", "live_values", "plans"):
            mapping = getattr(self, name)
            if mapping is not None:
                object.__setattr__(self, name, MappingProxyType(dict(mapping)))
        try:
            check_fields(self.to_json())
        except SchemaError as error:
            raise ArtifactError(
                f"{self.kind} artifact", got=error.got, allowed=error.allowed or _FITTING, fix=_FIX
            ) from None
        except RecursionError:
            raise ArtifactError(
                f"{self.kind} artifact", got="a signature nested too deeply", allowed=_FITTING, fix=_FIX
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Make JSON values of the fields."""
        return _MANIFEST_JSON.encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ManifestFields:
        """Make fields of JSON values that `check_fields` has checked."""
        return _MANIFEST_JSON.decode(data)


def differing_field(first: ManifestFields, second: ManifestFields) -> str | None:
    """The first field in which two artifacts of one model may not differ and do; None without such a field."""
    names = [field.name for field in dataclasses.fields(first) if field.name not in _NOT_OF_THE_MODEL]
    return next((name for name in names if getattr(first, name) != getattr(second, name)), None)


def field_names(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the fields that a manifest must have, and of the optional ones that this one has."""
    return _MANIFEST_JSON.names(manifest)


def check_fields(data: Mapping[str, Any]) -> None:
    """Check every field of a manifest, and that the fields fit together.

    Raises:
        SchemaError: the first field that is not valid.
    """
    _MANIFEST_JSON.check(data, "")


class _NonFinite:
    """Values of another rule, with NaN and infinities as JSON objects."""

    def __init__(self, rule: Object) -> None:
        self._rule = rule

    def check(self, value: object, where: str) -> None:
        self._rule.check(value, where)

    def encode(self, value: Any) -> Any:
        return encode_non_finite(self._rule.encode(value))

    def decode(self, value: Any) -> Any:
        return self._rule.decode(decode_non_finite(value))


def _check_together(members: dict[str, Any], where: str) -> None:
    by_name = {axis["name"]: axis for axis in members["signature"]["axes"]}
    axes = list(by_name)
    for index, profile in enumerate(members["profiles"]):
        check_names(profile, f"profiles[{index}]", axes)
        for name, sizes in profile.items():
            _check_range(sizes, by_name[name], f"profiles[{index}].{name}")
    if "influences" in members:
        check_names(members["influences"], "influences", axes)
    inputs = members["signature"]["inputs"]
    has_live = any("live" in tensor for tensor in inputs)
    if has_live != ("live_values" in members):
        raise SchemaError('"live_values" that do not fit the inputs', "one for each live parameter")
    if has_live:
        check_live_values(members["live_values"], inputs, "live_values")
    if axes and not members["profiles"]:
        raise field_error(members["profiles"], "profiles", f"at least one, for the axes {', '.join(axes)}")
    if (members["kind"] == "engine") != ("hardware" in members):
        raise SchemaError('"hardware" that does not fit the kind', '"hardware" for an engine, none for any other kind')
    if (members["kind"] == "bundle") != bool(members.get("plans")):
        raise SchemaError('"plans" that do not fit the kind', "at least one for a bundle, none for any other kind")
    for name in members.get("plans", ()):
        if not FILE_NAME.fullmatch(name):
            raise field_error(name, "plans", "names of letters, digits, '_', '.' and '-'")


def _check_range(sizes: list[int], axis: dict[str, Any], where: str) -> None:
    """A profile's sizes are sizes of the axis."""
    low: int = axis["min"]
    high: int = axis["max"]
    step: int = axis["multiple_of"]
    if not low <= sizes[0] <= sizes[2] <= high or any(size % step for size in sizes):
        multiples = f", multiples of {step}" if step > 1 else ""
        raise field_error(sizes, where, f"sizes from {low} to {high}{multiples}, as the axis has them")


_CAPABILITY = Items(integer(), lambda numbers: len(numbers) == 2, "[major, minor]")
_HARDWARE_JSON = Object(
    Hardware,
    {
        "flavour": word(FLAVOURS),
        "flavour_version": TEXT,
        "gpu": Optional(TEXT),
        "compute_capability": Optional(_CAPABILITY),
        "driver": Optional(TEXT),
        "compute_capabilities": Items(_CAPABILITY),
        "hardware_compatibility": word(get_args(HardwareCompatibility)),
    },
    optional=("hardware_compatibility",),
)
_PLAN_JSON = Object(BundledPlan, {"hardware": _HARDWARE_JSON, "versions": ByName(TEXT)})
_MANIFEST_JSON = Object(
    ManifestFields,
    {
        "kind": word(_KINDS),
        "signature": _NonFinite(SIGNATURE_JSON),
        "profiles": Items(PROFILE_JSON),
        "precision": word(MODEL_PRECISIONS),
        "versions": ByName(TEXT),
        "hardware": _HARDWARE_JSON,
        "influences": ByName(Optional(TEXT)),
        "live_values": ByName(plain(lambda value: isinstance(value, str), "a string")),
        "plans": ByName(_PLAN_JSON),
    },
    optional=("hardware", "influences", "live_values", "plans"),
    check_whole=_check_together,
)


def encode_non_finite(value: Any) -> Any:
    """Replace NaN and infinities by JSON objects, since JSON has no such numbers.

    A model's default argument may be one, e.g. the fill value of a mask.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if is_object(value):
        return {key: encode_non_finite(item) for key, item in value.items()}
    if is_array(value):
        return [encode_non_finite(item) for item in value]
    return value


def decode_non_finite(value: Any) -> Any:
    """The inverse of `encode_non_finite`."""
    if is_object(value):
        if value.keys() == {"float"}:
            return float(value["float"])
        return {key: decode_non_finite(item) for key, item in value.items()}
    if is_array(value):
        return [decode_non_finite(item) for item in value]
    return value
