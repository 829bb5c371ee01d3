"""An engine for other hardware or another TensorRT → the same model's engine for this machine.

Enters: a saved engine with the ONNX files beside it. Leaves: an engine that was built here, or taken from the cache of
engines. Separate because a build needs onnx, which loading an engine that fits does without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import Cache
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.builder.build import build
from torch2engine.core.config import BuildConfig
from torch2engine.core.progress import Progress
from torch2engine.trt.gpu import make_gpu_current

__all__ = ["rebuild"]


def rebuild(
    artifact: EngineArtifact, device: torch.device | str | None, cache: Cache, progress: Progress
) -> EngineArtifact:
    """Build a saved engine again, by the installed TensorRT and for one of this machine's GPUs.

    Signature, profiles, precision and whether it can be refitted stay as they were.

    Args:
        artifact: the engine.
        device: the GPU; None for PyTorch's current one.
        cache, progress: as for `torch2engine.build`.

    Raises:
        ArtifactError: its ONNX files are not here.
        Torch2EngineError: as `torch2engine.build`.
    """
    exported = artifact.exported()
    config = BuildConfig(refittable=WEIGHTS in artifact.files)
    with _current_gpu(device):
        return build(exported, config=config, cache=cache, progress=progress)


@contextlib.contextmanager
def _current_gpu(device: torch.device | str | None) -> Generator[None]:
    """Make the GPU current, since a build is for that one. Without a GPU the builder says whether it can build."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.device(device):
        make_gpu_current(torch.cuda.current_device())
        yield
