"""`OnnxArtifact`, or an ONNX file from anywhere → `EngineArtifact`.

Enters: a model in ONNX, profiles, a BuildConfig. Leaves: an engine in a scratch folder, with the signature it answers
to and the hardware it was built on. Separate because it is the public step. `deploy` makes its engine in the
same way, but compares it with the model before it stores it.
"""

from __future__ import annotations

from pathlib import Path

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import Cache, resolve_cache
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.load_or_build import load_or_build
from torch2engine.builder.source import Profiles
from torch2engine.core.config import BuildConfig
from torch2engine.core.precisions import Float32PrecisionName
from torch2engine.core.progress import Progress

__all__ = ["build"]


def build(
    source: OnnxArtifact | str | Path,
    profiles: Profiles = None,
    *,
    precision: Float32PrecisionName | None = None,
    config: BuildConfig = BuildConfig(),
    cache: Cache = None,
    progress: Progress = None,
) -> EngineArtifact:
    """Build a TensorRT engine.

    Args:
        source: an OnnxArtifact, or the path of an ONNX file; its inputs and outputs become the signature's by name.
        profiles: (min, opt, max) for every dynamic axis, e.g. ``{"batch": (1, 8, 32)}``, or a list of these. An axis
            has the name of its ONNX dimension, or ``"<input>_dim_<position>"`` if that has none. None means the
            artifact's own.
        precision: "fp32" or "tf32" for float32 matrix products; the dtypes themselves are the graph's. None means the
            artifact's own, and for a file what its dtypes make it. TF32 is off unless it is "tf32".
        config: flavour and limits.
        cache: True for the user's cache of engines, a folder, or an `EngineCache`. It gives an engine that was built
            before from the same bytes, for the same profiles, precision, config, GPU and TensorRT.
        progress: True for a bar on the terminal, or a callable. It is given (phase, step, steps, seconds) and returns
            False to cancel. An exception from it ends the build, and is raised here.

    Returns:
        the engine in a scratch folder, which is removed with the artifact; `save` copies it elsewhere.

    Raises:
        InstallationError: no usable TensorRT.
        ArtifactError: the file is missing or not ONNX.
        InputError, DtypeError, DynamicAxisError: an input, output or profile that is not possible.
        UnsupportedOperatorError: lists every node that TensorRT can't build.
        BuildError: TensorRT failed; `log` holds its lines, and `out_of_memory` says whether they name memory.

    >>> engine = t2e.build(onnx, profiles=[{"batch": (1, 1, 1)}, {"batch": (1, 8, 32)}])
    >>> folder = engine.save("model.t2e")
    >>> print(*engine.profiles, sep="; ")
    batch 1..1 (opt 1); batch 1..32 (opt 8)
    """
    engine_cache = resolve_cache(cache)
    with load_or_build(
        source, precision, config, engine_cache, progress, profiles=profiles, exact_weights=True
    ) as pending_engine:
        pending_engine.store(pending_engine.artifact.without_onnx())  # the caller has the ONNX file
    return pending_engine.artifact
