"""`load_artifact`: a saved folder → the artifact of its kind.

Enters: a path. Leaves: an artifact of one of the four kinds, every byte of it checked. Separate because it needs all
kinds, which do not know each other's loading.
"""

from __future__ import annotations

import os

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.model_graph import check_graph
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import PLAN, RUNTIME_CACHE, read_saved_folder

__all__ = ["load_artifact"]

_CLASSES = {kind.kind: kind for kind in (OnnxArtifact, EngineArtifact, PartsArtifact, BundleArtifact)}


def load_artifact(
    path: str | os.PathLike[str], to_run: bool = False
) -> OnnxArtifact | EngineArtifact | PartsArtifact | BundleArtifact:
    """Load a saved artifact of any kind and check every byte of it.

    The checks come in this order. The folder is there. Its manifest is readable, torch2engine's, undamaged, of a
    version that this torch2engine knows, and valid. Every file that it lists is a regular file of that size and
    SHA-256. Its ONNX graph, if there is one, has the inputs, outputs and data files that the manifest says. Other files
    in the folder are left alone.

    Args:
        path: the folder.
        to_run: hold the plan and the runtime cache in memory until their first use. Then running the engine at once
            reads and hashes them only once. Without it, the artifact holds no bytes in memory; nor does a bundle, whose
            plan is chosen later.

    Raises:
        ArtifactError: the first of these that fails; its ``path`` says where.
    """
    fields, files = read_saved_folder(path, None, (PLAN, RUNTIME_CACHE) if to_run else ())
    check_graph(fields.signature, files)
    return _CLASSES[fields.kind].from_parts(fields, files)
