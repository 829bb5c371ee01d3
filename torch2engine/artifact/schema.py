"""What every field of a manifest must be.

Enters: JSON values. Leaves: nothing, or `SchemaError` with the field's name, its value and what would be right.
Separate because the rules are a list to be read on its own.
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from torch2engine.core.config import FLAVOURS
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import MODEL_PRECISIONS
from torch2engine.core.preprocess import Preprocess

__all__ = ["FILE_NAME", "KINDS", "SchemaError", "check_facts", "fields", "integer", "text"]

KINDS = ("onnx", "engine")
# No separators, no leading dot, no drive: such a name can't leave the folder on any system.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")

_DTYPES = frozenset(f"{sign}{bits}" for sign in ("int", "uint") for bits in (*range(1, 9), 16, 32, 64)) | {
    *("bool", "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
}
_TREE_KINDS = ("tensor", "constant", "list", "tuple", "dict", "namedtuple", "sequence", "dataclass", "mapping")
_PARAMETER_KINDS = ("positional", "keyword", "var_positional", "var_keyword")
_NON_FINITE = ("nan", "inf", "-inf")
_LARGEST = 2**63 - 1
_DEEPEST = 64


class SchemaError(Exception):
    """A rule is broken; the caller, who knows the artifact's path, makes an ArtifactError of it."""

    def __init__(self, got: str, allowed: str = "", fix: str = "") -> None:
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(got)


def check_facts(data: dict[str, Any]) -> None:
    """Check kind, signature, profiles, precision, versions and hardware, and that they fit together.

    Raises:
        SchemaError: the first field that is not valid.
    """
    _word(data["kind"], "kind", KINDS)
    axes = _signature(data["signature"])
    for where, profile in _items(data["profiles"], "profiles"):
        _profile(profile, where, axes)
    if axes and not data["profiles"]:
        raise _wrong(data["profiles"], "profiles", f"at least one, for the axes {', '.join(axes)}")
    _word(data["precision"], "precision", MODEL_PRECISIONS)
    for name, version in fields(data["versions"], "versions").items():
        text(version, f"versions[{name!r}]")
    if (data["kind"] == "engine") != ("hardware" in data):
        raise SchemaError(
            'its manifest\'s "hardware" does not fit its kind', 'an engine has "hardware", an ONNX model has not'
        )
    if "hardware" in data:
        _hardware(data["hardware"])


def fields(value: object, where: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The members of a JSON object, which must have exactly these names (any names if None)."""
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    members = cast("dict[str, Any]", value)
    if names is not None and members.keys() != set(names):
        for name in names:
            if name not in members:
                raise SchemaError(f"its manifest lacks {_inside(where, name)}")
        extra = reprlib.repr(min(members.keys() - set(names)))
        raise SchemaError(f"its manifest holds {extra} in {where or 'itself'}", f"only {', '.join(names)}")
    return members


def integer(value: object, where: str, low: int = 0) -> int:
    """An int from `low` up; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _LARGEST:
        raise _wrong(value, where, f"an int of at least {low}")
    return value


def text(value: object, where: str) -> str:
    """A str that is not empty."""
    if not isinstance(value, str) or not value:
        raise _wrong(value, where, "a string that is not empty")
    return value


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(value: object, where: str, allowed: str) -> SchemaError:
    return SchemaError(f"its manifest's {where} is {reprlib.repr(value)}", f"it must be {allowed}")


def _word(value: object, where: str, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(value, where, "one of " + ", ".join(map(repr, allowed)))
    return value


def _items(value: object, where: str) -> list[tuple[str, Any]]:
    """The items of a JSON array, each with its name."""
    if not isinstance(value, list):
        raise _wrong(value, where, "an array")
    return [(f"{where}[{index}]", item) for index, item in enumerate(cast("list[Any]", value))]


def _optional_text(value: object, where: str) -> None:
    if value is not None:
        text(value, where)


def _signature(value: object) -> list[str]:
    """Check the signature and return its axes' names."""
    members = fields(value, "signature", ("inputs", "outputs", "axes", "parameters", "output"))
    axes = [_axis(axis, where) for where, axis in _items(members["axes"], "signature.axes")]
    inputs = [_tensor(spec, where) for where, spec in _items(members["inputs"], "signature.inputs")]
    outputs = [_tensor(spec, where) for where, spec in _items(members["outputs"], "signature.outputs")]
    for subject, names in (("axes", axes), ("tensors", [name for name, _ in inputs + outputs])):
        name, count = next(iter(Counter(names).most_common(1)), ("", 0))
        if count > 1:
            raise SchemaError(f"its manifest has {count} {subject} named {reprlib.repr(name)}", "names are unique")
    used = {dim for _, dims in inputs for dim in dims}
    if used != set(axes):
        raise SchemaError(
            f"its manifest's inputs use the axes {sorted(used)}",
            f"they must be those in signature.axes: {sorted(axes)}",
        )
    for where, parameter in _items(members["parameters"], "signature.parameters"):
        _parameter(parameter, where)
    _tree(members["output"], "signature.output")
    return axes


def _axis(value: object, where: str) -> str:
    members = fields(value, where, ("name", "min", "opt", "max", "multiple_of"))
    _range([members[size] for size in ("min", "opt", "max")], where)
    integer(members["multiple_of"], f"{where}.multiple_of", low=1)
    return text(members["name"], f"{where}.name")


def _range(value: object, where: str) -> None:
    sizes = [integer(size, item, low=1) for item, size in _items(value, where)]
    if len(sizes) != 3 or sizes != sorted(sizes):
        raise _wrong(value, where, "min <= opt <= max")


def _profile(value: object, where: str, axes: Sequence[str]) -> None:
    for name, sizes in fields(value, where, axes).items():
        _range(sizes, f"{where}[{name!r}]")


def _tensor(value: object, where: str) -> tuple[str, list[str]]:
    """Check one tensor; return its name and its symbolic dimensions."""
    optional = ("preprocess",) if isinstance(value, dict) and "preprocess" in value else ()
    members = fields(cast("object", value), where, ("name", "dtype", "shape", *optional))
    dims: list[str] = []
    for item, dim in _items(members["shape"], f"{where}.shape"):
        if isinstance(dim, str):
            dims.append(text(dim, item))
        else:
            integer(dim, item)
    if not isinstance(members["dtype"], str) or members["dtype"] not in _DTYPES:
        raise _wrong(members["dtype"], f"{where}.dtype", "a dtype as PyTorch spells it, e.g. 'float32'")
    if optional:
        _preprocess(members["preprocess"], f"{where}.preprocess")
    return text(members["name"], f"{where}.name"), dims


def _preprocess(value: object, where: str) -> None:
    members = fields(value, where, ("mean", "std", "scale", "layout"))
    try:
        Preprocess.from_json(members)
    except InputError as error:
        raise _wrong(members, where, f"what Preprocess takes ({error})") from None


def _parameter(value: object, where: str) -> None:
    members = fields(value, where, ("name", "kind", "tree", "default", "optional"))
    text(members["name"], f"{where}.name")
    _word(members["kind"], f"{where}.kind", _PARAMETER_KINDS)
    _constant(members["default"], f"{where}.default")
    if not isinstance(members["optional"], bool):
        raise _wrong(members["optional"], f"{where}.optional", "true or false")
    if members["tree"] is not None:
        _tree(members["tree"], f"{where}.tree")


def _tree(value: object, where: str, depth: int = 1) -> None:
    if depth > _DEEPEST:
        raise SchemaError(f"its signature is nested more than {_DEEPEST} levels deep")
    members = fields(value, where)
    kind = _word(members.get("kind"), f"{where}.kind", _TREE_KINDS)
    leaf = {"tensor": ("kind",), "constant": ("kind", "value")}.get(kind)
    inner = [name for name in ("keys", "children", "type") if name in members]
    if "keys" in members or "children" in members:
        inner = [*{*inner, "keys", "children"}]
    fields(value, where, leaf or ("kind", *inner))
    if kind == "constant":
        _constant(members["value"], f"{where}.value")
    if "type" in members:
        text(members["type"], f"{where}.type")
    keys = _items(members.get("keys", []), f"{where}.keys")
    children = _items(members.get("children", []), f"{where}.children")
    if len(keys) != len(children):
        raise _wrong(members["keys"], f"{where}.keys", f"one key for each of {len(children)} children")
    for item, key in keys:
        if not isinstance(key, (str, int)):
            raise _wrong(key, item, "a string or an int")
    for item, child in children:
        _tree(child, item, depth + 1)


def _constant(value: object, where: str) -> None:
    if isinstance(value, dict):
        _word(fields(cast("object", value), where, ("float",))["float"], f"{where}.float", _NON_FINITE)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise _wrong(value, where, "null, true, false, a number or a string")


def _hardware(value: object) -> None:
    where = "hardware"
    names = ("flavour", "flavour_version", "gpu", "compute_capability", "driver", "compute_capabilities")
    members = fields(value, where, names)
    _word(members["flavour"], f"{where}.flavour", FLAVOURS)
    text(members["flavour_version"], f"{where}.flavour_version")
    _optional_text(members["gpu"], f"{where}.gpu")
    _optional_text(members["driver"], f"{where}.driver")
    if members["compute_capability"] is not None:
        _capability(members["compute_capability"], f"{where}.compute_capability")
    for item, pair in _items(members["compute_capabilities"], f"{where}.compute_capabilities"):
        _capability(pair, item)


def _capability(value: object, where: str) -> None:
    numbers = [integer(number, item) for item, number in _items(value, where)]
    if len(numbers) != 2:
        raise _wrong(value, where, "[major, minor]")
