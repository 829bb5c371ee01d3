"""A plan in a file of its own, whoever built it → its flavour, its version and its bytes.

Enters: the path of a `.engine` or `.plan` file, as trtexec, Polygraphy or ultralytics write it. Leaves: the facts that
stand in its first bytes. Separate because they can be read where there is neither TensorRT nor a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch2engine.core.errors import ArtifactError
from torch2engine.core.foreign_files import cure_for_path

__all__ = ["PlanFile", "read_plan_file"]

# The first four bytes of a plan; its version stands in four more, one byte each for major, minor, patch and build.
_FLAVOURS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_MAGIC_BYTES = 4
_VERSION_AT = 24
_HEADER_BYTES = 28
# ultralytics puts JSON in front of the plan, and its length before that.
_LENGTH_BYTES = 4
_MOST_JSON_BYTES = 1 << 24


@dataclass(frozen=True)
class PlanFile:
    """A plan and what its first bytes tell.

    Args:
        path: the file.
        flavour: "tensorrt" or "tensorrt_rtx".
        version: of the library that built it, e.g. "10.16.1.11".
        plan: the bytes that TensorRT reads.
        metadata: what ultralytics wrote in front of the plan; empty for a bare plan.
    """

    path: Path
    flavour: str
    version: str
    plan: memoryview
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values, without the bytes."""
        return {
            "path": str(self.path),
            "flavour": self.flavour,
            "version": self.version,
            "plan_bytes": len(self.plan),
            "metadata": dict(self.metadata),
        }


def read_plan_file(path: Path) -> PlanFile:
    """Read a file that holds one plan.

    Raises:
        ArtifactError: the file is missing, or it is no plan.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise _no_plan(path, str(error.strerror or error), "give the path of an engine file") from error
    metadata, plan = _split_metadata(data)
    flavour = _FLAVOURS.get(bytes(plan[:_MAGIC_BYTES]))
    if flavour is None or len(plan) < _HEADER_BYTES:
        fix = cure_for_path(path) if path.suffix == ".onnx" else ""
        raise _no_plan(path, f"a file that begins with {bytes(data[:8])!r}", fix or "build the engine again")
    version = ".".join(str(number) for number in plan[_VERSION_AT:_HEADER_BYTES])
    return PlanFile(path, flavour, version, plan, metadata)


def _split_metadata(data: memoryview) -> tuple[Mapping[str, Any], memoryview]:
    """Take the JSON off that ultralytics writes in front of a plan; a bare plan stays as it is."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    is_bare = bytes(data[:_MAGIC_BYTES]) in _FLAVOURS
    if is_bare or not 0 < length <= _MOST_JSON_BYTES or bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + 1]) != b"{":
        return {}, data
    try:
        metadata: object = json.loads(bytes(data[_LENGTH_BYTES:end]))
    except ValueError:
        return {}, data
    return cast("dict[str, Any]", metadata), data[end:]


def _no_plan(path: Path, got: str, fix: str) -> ArtifactError:
    allowed = "a plan of TensorRT or TensorRT-RTX"
    return ArtifactError(f"engine file '{path}'", path=str(path), got=got, allowed=allowed, fix=fix)
