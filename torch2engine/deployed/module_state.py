"""The artifact of a deployed module as the values of a state_dict, and back.

Enters: an artifact, or a state. Leaves: strings and byte tensors, which `torch.load(weights_only=True)` reads; or the
artifact. Separate because this is a format, and a deployed module only decides when it is written and read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from torch2engine.artifact.artifact import Artifact
from torch2engine.core.errors import ArtifactError

__all__ = ["artifact_of_state", "state_of_artifact"]


def state_of_artifact(artifact: Artifact, includes: Callable[[str], bool]) -> dict[str, Any]:
    """Give an artifact as a manifest and byte tensors.

    Args:
        artifact: with everything that calls and refits have added.
        includes: tells for a file of the artifact whether it belongs in the state.
    """
    files = {name: _bytes(artifact.read(name)) for name in artifact.files if includes(name)}
    return {"manifest": json.dumps(artifact.manifest()), "files": files}


def artifact_of_state(subject: str, state: Any, kind: type[Artifact]) -> Artifact:
    """Make the artifact that a state holds.

    Args:
        subject: the class name of the deployed module that takes it.
        state: as `state_of_artifact` gave it, on any device.
        kind: the class of the artifact.

    Raises:
        ArtifactError: the state is not whole.
    """
    try:
        # map_location may have put the bytes on a GPU
        files = {name: tensor.cpu().numpy().tobytes() for name, tensor in state["files"].items()}
        manifest = json.loads(state["manifest"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{subject}'s state",
            got=f"other values than state_dict() gave ({type(error).__name__}: {error})",
            allowed="a manifest and the files' bytes",
            fix="pass state_dict()'s value as it was",
        ) from error
    return kind.from_manifest(manifest, files)


def _bytes(data: bytes) -> torch.Tensor:
    # frombuffer takes no empty buffer
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
