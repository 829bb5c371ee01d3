"""Several engines of one model → one saved folder: the public step `bundle`.

Enters: engines and bundles, or their folders. Leaves: a folder with one exported model and all plans. Separate from
`bundle_artifact` because it loads artifacts of every kind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.core.errors import InputError
from torch2engine.core.wording import kind_of

__all__ = ["bundle"]

Source = str | os.PathLike[str] | EngineArtifact | BundleArtifact


def bundle(path: str | os.PathLike[str], artifacts: Sequence[Source], *, overwrite: bool = True) -> Path:
    """Save engines of one model for several GPUs, flavours or versions as one folder.

    The ONNX files and the weight program are there once, beside all plans with their compiled kernels and reports.
    `load` and `Processor` take the plan for their GPU. `load(..., on_mismatch="rebuild")` builds one where there is
    none.

    Args:
        path: the folder; an artifact that is there is replaced in one step.
        artifacts: engines that were built from one exported model, each for other GPUs or by another TensorRT. A
            bundle stands for all of its plans, and may lie at `path`. Two equal plans become one.
        overwrite: False refuses to replace.

    Returns:
        the folder.

    Raises:
        InputError: no artifacts, or something else than an engine or a bundle.
        ArtifactError: an artifact is damaged or lacks its ONNX files; two are of different models; two different plans
            are for the same GPUs; or, as for `EngineArtifact.save`, what is at `path` must stay.

    >>> turing = t2e.build(onnx, config=t2e.BuildConfig(flavour="tensorrt_rtx", compute_capabilities=((7, 5),)))
    >>> folder = t2e.bundle("everywhere.t2e", [engine, turing])
    >>> [hardware.compute_capabilities for hardware in t2e.BundleArtifact.load(folder).plans.values()]
    [((7, 5),), ()]
    """
    if not isinstance(cast("object", artifacts), (list, tuple)) or not artifacts:
        got = "an empty list" if artifacts in ([], ()) else kind_of(artifacts)
        raise InputError("artifacts", got=got, allowed="a list of engines", fix="pass the folders that save() wrote")
    engines = [engine for artifact in artifacts for engine in _engines_of(artifact)]
    return BundleArtifact.of_engines(engines).save(path, overwrite)


def _engines_of(source: object) -> list[EngineArtifact]:
    found = source
    if isinstance(source, (str, os.PathLike)):
        found = load_artifact(cast("str | os.PathLike[str]", source))
    if isinstance(found, BundleArtifact):
        return [found.engine(name) for name in found.plans]
    if isinstance(found, EngineArtifact):
        return [found]
    where = f" in '{os.fspath(cast('str', source))}'" if found is not source else ""
    raise InputError(
        "artifacts",
        got=f"{kind_of(found)}{where}",
        allowed="engines and bundles, or their folders",
        fix="build it first: t2e.build(...); a model in parts can't be bundled",
    )
