"""The classes that a manifest may name, found again where it is read.

Enters: "module:qualified.name" and the kind of container that it must be. Leaves: the class, or a typed error. Apart
from `tree` because it is a border: a manifest comes from outside, and may name no other callable.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, cast

from torch2engine.core.errors import ArtifactError

__all__ = ["find_class"]


def _fits(found: Any, kind: str) -> bool:
    """Tell whether a class is one that this kind of node may be rebuilt by: a manifest must not name any callable."""
    if not isinstance(found, type):
        return False
    if kind == "namedtuple":
        return issubclass(found, tuple) and hasattr(cast("Any", found), "_fields")
    if kind == "dataclass":
        return dataclasses.is_dataclass(found)
    return issubclass(found, Mapping if kind == "mapping" else (list, tuple))


def find_class(type_name: str, kind: str) -> type:
    """Import the class "module:qualified.name" of a node of this kind.

    Raises:
        ArtifactError: it can't be found, or is no such container; the message names it.
    """
    module, _, qualname = type_name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"type '{type_name}'",
            got=f"can't be imported here ({error})",
            allowed="results are rebuilt in the model's own types",
            fix="define the class at the top level of a module that can be imported where the artifact is loaded",
        ) from error
    if not _fits(found, kind):
        raise ArtifactError(f"type '{type_name}'", got="is no such container", allowed=f"a {kind} class")
    return cast("type", found)
