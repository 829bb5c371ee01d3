"""JSON values ↔ the package's own values: which JSON values are valid, and how to convert in both directions.

Enters: a value, or JSON values that somebody else may have changed. Leaves: JSON values; or values, after a check that
names the first wrong field. Separate because every class that a manifest holds declares its fields by these rules.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

__all__ = [
    "BOOLEAN",
    "TEXT",
    "ByName",
    "Items",
    "Object",
    "OneField",
    "Optional",
    "Plain",
    "Rule",
    "SchemaError",
    "check_names",
    "field_error",
    "integer",
    "is_array",
    "is_object",
    "plain",
    "word",
]

_LARGEST = 2**63 - 1


class SchemaError(Exception):
    """A JSON value breaks a rule. The caller knows the artifact's path, and raises an ArtifactError instead."""

    def __init__(self, got: str, allowed: str = "", fix: str = "") -> None:
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(got)


def field_error(value: object, where: str, allowed: str) -> SchemaError:
    """The error for a field that holds a wrong value."""
    return SchemaError(f"manifest field {where} = {reprlib.repr(value)}", allowed)


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def check_names(value: object, where: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Check that a value is a JSON object with exactly these names, or with any names if None; return its members.

    Raises:
        SchemaError: naming the first name that is missing or surplus.
    """
    if not is_object(value):
        raise field_error(value, where, "an object")
    if names is not None and value.keys() != set(names):
        for name in names:
            if name not in value:
                raise SchemaError(f"a manifest without {_inside(where, name)}")
        surplus = reprlib.repr(min(value.keys() - set(names)))
        raise SchemaError(
            f"{surplus} in {f'manifest field {where}' if where else 'its manifest'}", f"only {', '.join(names)}"
        )
    return value


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


class Rule(Protocol):
    """One kind of value: `check` takes JSON values, `encode` makes them, and `decode` takes checked ones."""

    def check(self, value: object, where: str, /) -> None:
        """Raise a SchemaError that names the field at `where` if the JSON value is not valid."""

    def encode(self, value: Any, /) -> Any:
        """Make JSON values of a value."""

    def decode(self, value: Any, /) -> Any:
        """Make a value of JSON values that were checked."""


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Plain:
    """A value that needs no decoding, and no encoding either unless a function for that is given."""

    check: Callable[[object, str], None]
    encode: Callable[[Any], Any] = _unchanged

    def decode(self, value: Any) -> Any:
        return value


def plain(fits: Callable[[object], bool], allowed: str) -> Plain:
    """A value for which `fits` is true; `allowed` says in words which values these are."""

    def check(value: object, where: str) -> None:
        if not fits(value):
            raise field_error(value, where, allowed)

    return Plain(check)


BOOLEAN = plain(lambda value: isinstance(value, bool), "true or false")
TEXT = plain(lambda value: isinstance(value, str) and value != "", "a string that is not empty")


def integer(low: int = 0) -> Plain:
    """An int from `low` up; true and false are no ints."""

    def fits(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST

    return plain(fits, f"an int of at least {low}")


def word(allowed: Sequence[str]) -> Plain:
    """One of some words."""
    return plain(lambda value: isinstance(value, str) and value in allowed, "one of " + ", ".join(map(repr, allowed)))


@dataclass(frozen=True)
class Optional:
    """None, or what another rule describes."""

    rule: Rule

    def check(self, value: object, where: str) -> None:
        if value is not None:
            self.rule.check(value, where)

    def encode(self, value: Any) -> Any:
        return None if value is None else self.rule.encode(value)

    def decode(self, value: Any) -> Any:
        return None if value is None else self.rule.decode(value)


@dataclass(frozen=True)
class Items:
    """A tuple, as a JSON array.

    Args:
        rule: of every item.
        fits: tells whether an array of valid items is valid.
        allowed: what `fits` takes, in words.
    """

    rule: Rule
    fits: Callable[[list[Any]], bool] = lambda items: True
    allowed: str = ""

    def check(self, value: object, where: str) -> None:
        if not is_array(value):
            raise field_error(value, where, "an array")
        for index, item in enumerate(value):
            self.rule.check(item, f"{where}[{index}]")
        if not self.fits(value):
            raise field_error(value, where, self.allowed)

    def encode(self, value: Any) -> list[Any]:
        return [self.rule.encode(item) for item in value]

    def decode(self, value: Any) -> tuple[Any, ...]:
        return tuple(self.rule.decode(item) for item in value)


@dataclass(frozen=True)
class ByName:
    """A mapping from any names to values of one rule, as a JSON object."""

    rule: Rule

    def check(self, value: object, where: str) -> None:
        for name, item in check_names(value, where).items():
            self.rule.check(item, f"{where}[{name!r}]")

    def encode(self, value: Any) -> dict[str, Any]:
        return {name: self.rule.encode(item) for name, item in value.items()}

    def decode(self, value: Any) -> dict[str, Any]:
        return {name: self.rule.decode(item) for name, item in value.items()}


@dataclass(frozen=True)
class OneField:
    """An instance of a class with one field, written as that field alone."""

    make: Callable[[Any], Any]
    name: str
    rule: Rule

    def check(self, value: object, where: str) -> None:
        self.rule.check(value, where)

    def encode(self, value: Any) -> Any:
        return self.rule.encode(getattr(value, self.name))

    def decode(self, value: Any) -> Any:
        return self.make(self.rule.decode(value))


@dataclass(frozen=True)
class Object:
    """An instance of a class, as a JSON object with one member for each field.

    Args:
        make: the class, called with its fields by name.
        fields: field name -> rule, in the order of the checks.
        optional: fields that the JSON object leaves out if they are None or ().
        check_whole: called with the JSON object and its place once every field is valid; raises a SchemaError.
    """

    make: Callable[..., Any]
    fields: Mapping[str, Rule]
    optional: Sequence[str] = ()
    check_whole: Callable[[dict[str, Any], str], None] = field(default=lambda members, where: None)

    def names(self, value: object) -> list[str]:
        """The names that a JSON object must have, and the optional ones that this one has."""
        present = value.keys() if is_object(value) else ()
        return [name for name in self.fields if name not in self.optional or name in present]

    def check(self, value: object, where: str) -> None:
        members = check_names(value, where, self.names(value))
        for name, member in ((name, members[name]) for name in self.fields if name in members):
            self.fields[name].check(member, _inside(where, name))
        self.check_whole(members, where)

    def encode(self, value: Any) -> dict[str, Any]:
        values = {name: getattr(value, name) for name in self.fields}
        left_out = [name for name in self.optional if values[name] in (None, ())]
        return {name: self.fields[name].encode(item) for name, item in values.items() if name not in left_out}

    def decode(self, value: Any) -> Any:
        return self.make(**{name: self.fields[name].decode(member) for name, member in value.items()})
