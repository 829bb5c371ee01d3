"""The kinds of container in arguments and results, one row of a table each.

Enters: a container, or the kind, class name and children of one. Leaves: its children, or the container again.
Separate because a new kind of container is one row here; `pytree`, `structure` and the manifest follow.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.registered_types import is_registered, parts_of, rebuild_registered
from torch2engine.core.wording import with_article

__all__ = ["CONTAINERS", "Container", "Key", "container_of", "find_class"]

Key = str | int

# Modules that define containers and do nothing else: a manifest may name them before anybody has imported them.
_CONTAINER_MODULES = ("collections", "torch.return_types", "transformers.modeling_outputs")


@dataclass(frozen=True, kw_only=True)
class Container:
    """One kind of container.

    Args:
        kind: its name in a manifest.
        matches: tells whether a value is of this kind; the first row that matches counts.
        keys_of: the keys, field names or indices of a value, in the order of its children.
        children_of: the children of a value for these keys; None if the value has another structure.
        rebuild: called with the class (None if `fits_class` is), the keys and the children; gives the container.
        fits_class: says whether a manifest may name a class for this kind; None if the kind needs no class.
        names_fields: whether the fields of a result of this kind are named without the result's own name.
        refill: called with a value, its class, new keys and new children; puts them into the value. None if no value of
            this kind ever changes.
        can_refill: tells whether a value can be refilled.
    """

    kind: str
    matches: Callable[[Any], bool]
    keys_of: Callable[[Any], Sequence[Key]]
    children_of: Callable[[Any, Sequence[Key]], list[Any] | None]
    rebuild: Callable[[Any, Sequence[Key], list[Any]], Any]
    fits_class: Callable[[type], bool] | None = None
    names_fields: bool = False
    refill: Callable[[Any, Any, Sequence[Key], list[Any]], None] | None = None
    can_refill: Callable[[Any], bool] = lambda value: True


def _indices(value: Sequence[Any]) -> Sequence[Key]:
    return range(len(value))


def _items(value: Any, keys: Sequence[Key]) -> list[Any] | None:
    """The children of a sequence. A list may stand for a tuple and the other way round."""
    if not isinstance(value, (list, tuple)):
        return None
    items = cast("Sequence[Any]", value)
    return list(items) if len(items) == len(keys) else None


def _mapping_keys(value: Mapping[Any, Any]) -> Sequence[Key]:
    return list(value)


def _values(value: Any, keys: Sequence[Key]) -> list[Any] | None:
    """The children of a mapping, in the order of the keys."""
    if not isinstance(value, Mapping):
        return None
    items = cast("Mapping[Any, Any]", value)
    return [items[key] for key in keys] if set(items) == set(keys) else None


def _attributes(value: Any, keys: Sequence[Key]) -> list[Any] | None:
    """The children of a dataclass: attributes of any object that has them all."""
    return [getattr(value, str(key)) for key in keys] if all(hasattr(value, str(key)) for key in keys) else None


def _parts(value: Any, keys: Sequence[Key]) -> list[Any] | None:
    """The parts of a registered object; the last key is that of its context."""
    if not is_registered(value.__class__):
        return None
    parts = parts_of(value)
    return list(parts.values()) if list(parts) == list(keys) else None


def _is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cast("Any", cls), "_fields")


def _rebuild_dataclass(cls: Any, keys: Sequence[Key], children: list[Any]) -> Any:
    instance = object.__new__(cls)  # without __init__ and __post_init__, which would compute the final fields again
    for key, child in zip(keys, children, strict=True):
        object.__setattr__(instance, str(key), child)
    return instance


def _rebuild_mapping(cls: Any, keys: Sequence[Key], children: list[Any]) -> Any:
    # Hugging Face's ModelOutput is a dataclass that takes its fields as keywords; other Mappings take pairs.
    if dataclasses.is_dataclass(cls):
        make = cast("Callable[..., Any]", cls)
        return make(**{str(key): child for key, child in zip(keys, children, strict=True)})
    return cls(dict(zip(keys, children, strict=True)))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_mutable_mapping(value: Any) -> bool:
    return isinstance(value, MutableMapping)


def _refill_list(value: list[Any], cls: Any, keys: Sequence[Key], children: list[Any]) -> None:
    value[:] = children


def _refill_mapping(value: MutableMapping[Any, Any], cls: Any, keys: Sequence[Key], children: list[Any]) -> None:
    for key in [key for key in value if key not in keys]:
        del value[key]
    value.update(zip(keys, children, strict=True))


def _refill_dataclass(value: Any, cls: Any, keys: Sequence[Key], children: list[Any]) -> None:
    for key, child in zip(keys, children, strict=True):
        setattr(value, str(key), child)


def _refill_registered(value: Any, cls: Any, keys: Sequence[Key], children: list[Any]) -> None:
    vars(value).update(vars(rebuild_registered(value.__class__, children)))


_ROWS = (
    Container(
        kind="list",
        matches=lambda value: value.__class__ is list,
        keys_of=_indices,
        children_of=_items,
        rebuild=lambda cls, keys, children: children,
        refill=_refill_list,
        can_refill=_is_list,
    ),
    Container(
        kind="tuple",
        matches=lambda value: value.__class__ is tuple,
        keys_of=_indices,
        children_of=_items,
        rebuild=lambda cls, keys, children: tuple(children),
    ),
    Container(
        kind="dict",
        matches=lambda value: value.__class__ in (dict, defaultdict),  # a defaultdict's factory is not captured
        keys_of=_mapping_keys,
        children_of=_values,
        rebuild=lambda cls, keys, children: dict(zip(keys, children, strict=True)),
        names_fields=True,
        refill=_refill_mapping,
        can_refill=_is_mutable_mapping,
    ),
    Container(
        kind="namedtuple",
        matches=lambda value: _is_namedtuple(value.__class__),
        keys_of=lambda value: value._fields,
        children_of=_items,
        rebuild=lambda cls, keys, children: cls(*children),
        fits_class=_is_namedtuple,
        names_fields=True,
    ),
    Container(
        kind="sequence",
        matches=lambda value: isinstance(value, (list, tuple)),
        keys_of=_indices,
        children_of=_items,
        rebuild=lambda cls, keys, children: cls(children),
        fits_class=lambda cls: issubclass(cls, (list, tuple)),
        refill=_refill_list,
        can_refill=_is_list,
    ),
    Container(
        kind="dataclass",
        matches=lambda value: dataclasses.is_dataclass(value) and not isinstance(value, Mapping),
        keys_of=lambda value: [field.name for field in dataclasses.fields(value)],
        children_of=_attributes,
        rebuild=_rebuild_dataclass,
        fits_class=dataclasses.is_dataclass,
        names_fields=True,
        refill=_refill_dataclass,
    ),
    Container(
        kind="mapping",
        matches=lambda value: isinstance(value, Mapping),
        keys_of=_mapping_keys,
        children_of=_values,
        rebuild=_rebuild_mapping,
        fits_class=lambda cls: issubclass(cls, Mapping),
        names_fields=True,
        refill=_refill_mapping,
        can_refill=_is_mutable_mapping,
    ),
    Container(
        kind="registered",
        matches=lambda value: is_registered(value.__class__),
        keys_of=lambda value: list(parts_of(value)),
        children_of=_parts,
        rebuild=lambda cls, keys, children: rebuild_registered(cls, children),
        fits_class=is_registered,
        names_fields=True,
        refill=_refill_registered,
    ),
)

CONTAINERS = {row.kind: row for row in _ROWS}


def container_of(value: Any, path: str) -> Container:
    """Find the kind of a container.

    Args:
        value: neither a tensor nor a constant.
        path: where it stands, for the error.

    Raises:
        InputError: it is no known container.
    """
    for container in CONTAINERS.values():
        if container.matches(value):
            return container
    cls: type = value.__class__
    fix = ""
    if cls.__module__.partition(".")[0] == "numpy":
        fix = "convert it with torch.from_numpy"
    elif cls.__name__ in ("SymInt", "SymFloat", "SymBool"):
        fix = "a Python number that follows a dynamic axis can't leave an engine: return a tensor instead"
    elif "Cache" in cls.__name__:
        fix = "register it with torch.utils._pytree, or for a Hugging Face model pass use_cache=False"
    raise InputError(
        f"'{path}'",
        name=path,
        got=with_article(f"{cls.__module__}.{cls.__qualname__}"),
        allowed="tensors, None, bool, int, float, str, and dicts, lists, tuples, NamedTuples, dataclasses of these",
        fix=fix,
    )


def find_class(type_name: str, container: Container) -> type:
    """Find the class "module:qualified.name" that rebuilds a container, without an import.

    A manifest comes from outside. So a class counts only if the process has imported its module by itself, or if the
    module is one of a few that define containers and do nothing else. It must be of the right kind, and no other
    callable.

    Raises:
        ArtifactError: it can't be found, or is no such container; the message names it.
    """
    module_name, _, qualname = type_name.partition(":")
    if module_name in _CONTAINER_MODULES:
        with suppress(ImportError):
            importlib.import_module(module_name)
    module = sys.modules.get(module_name)
    if module is None:
        raise ArtifactError(
            f"type '{type_name}'",
            got=f"no such class here (module '{module_name}' is not imported, and a manifest may not import it)",
            allowed="the model's own types, in which results are rebuilt",
            fix=f"import {module_name} before the call, as a program of your own would",
        )
    found: object = module
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None  # no __getattr__ of a module runs
    if found is None:
        raise ArtifactError(
            f"type '{type_name}'",
            got=f"no such class here (module '{module_name}' has no attribute '{qualname}')",
            allowed="the model's own types, in which results are rebuilt",
            fix="define the class at the top level of a module that is imported where the artifact is loaded",
        )
    fits = container.fits_class
    if not isinstance(found, type) or fits is None or not fits(found) or not _is_registered(found, type_name):
        allowed = f"{with_article(container.kind)} class"
        raise ArtifactError(
            f"type '{type_name}'", got="no such container", allowed=allowed, fix="deploy the model again"
        )
    return found


def _is_registered(cls: type, type_name: str) -> bool:
    """Whether a class is defined under this name, outside of the standard library, whose containers may open files."""
    module = cls.__module__
    if f"{module}:{cls.__qualname__}" != type_name:
        return False
    return module in _CONTAINER_MODULES or module.partition(".")[0] not in sys.stdlib_module_names
