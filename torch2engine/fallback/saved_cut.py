"""How a program is cut into parts, as it is saved: which operators form a part, and which engine answers which sizes.

Enters: the parts of a deployed program, or JSON that anybody may have written. Leaves: plain data, checked. Separate
because a cut is found once, by deploying, and is only repeated when a model is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import BOOLEAN, TEXT, Items, Object, SchemaError, integer, plain
from torch2engine.deployed.explanation import Obstacle

__all__ = ["SavedCut", "SavedEngine", "SavedPart"]


@dataclass(frozen=True)
class SavedEngine:
    """One engine of a part.

    Args:
        name: of its artifact.
        sizes: of the part's dynamic axes, in the order of its layout: the largest, or the only ones.
        is_range: whether it answers all sizes up to these.
    """

    name: str
    sizes: tuple[int, ...]
    is_range: bool


@dataclass(frozen=True)
class SavedPart:
    """One part of a program.

    Args:
        nodes: the names of its operators, in the program's order.
        results: the names of those whose results it returns, in the order of its engines' outputs.
        reason: why it stays in PyTorch, or "".
        engines: that answer it, for different sizes.
    """

    nodes: tuple[str, ...]
    results: tuple[str, ...]
    reason: str
    engines: tuple[SavedEngine, ...]


@dataclass(frozen=True)
class SavedCut:
    """A program's parts, and the operators that no engine takes."""

    parts: tuple[SavedPart, ...]
    obstacles: tuple[Obstacle, ...]

    def to_json(self) -> bytes:
        """The bytes of ``cut.json``."""
        return json.dumps(_CUT_JSON.encode(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> SavedCut:
        """Read ``cut.json``.

        Args:
            data: its bytes.
            where: the artifact's path, for errors.

        Raises:
            ArtifactError: it is not valid.
        """
        try:
            value = json.loads(data)
            _CUT_JSON.check(value, "")
        except (SchemaError, ValueError, RecursionError) as error:
            got = error.got.replace("manifest", "cut.json") if isinstance(error, SchemaError) else "no JSON"
            raise ArtifactError(
                f"artifact '{where}'",
                got=f"a damaged cut.json ({got})",
                allowed="the parts of a model",
                fix="save it again or restore it from a copy",
                path=where,
            ) from error
        return _CUT_JSON.decode(value)


_ANY_TEXT = plain(lambda value: isinstance(value, str), "a string")
_ENGINE_JSON = Object(SavedEngine, {"name": TEXT, "sizes": Items(integer()), "is_range": BOOLEAN})
_PART_JSON = Object(
    SavedPart,
    {"nodes": Items(TEXT), "results": Items(TEXT), "reason": _ANY_TEXT, "engines": Items(_ENGINE_JSON)},
)
_OBSTACLE_JSON = Object(Obstacle, {"operator": TEXT, "source": _ANY_TEXT, "reason": _ANY_TEXT})
_CUT_JSON = Object(SavedCut, {"parts": Items(_PART_JSON), "obstacles": Items(_OBSTACLE_JSON)})
