"""An engine or an exported model → `ArrayRunner`: numpy in, numpy out, on a GPU or on the CPU.

Enters: an artifact or its folder. Leaves: a `Processor` for an engine, an `OrtRunner` for an exported model. Separate
because whoever distributes work must not care which of them answers.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.core.config import RuntimeConfig, require_instance
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.spec import Profile, Signature
from torch2engine.core.wording import kind_of
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.serving.processor.arrays import check_call, live_arrays
from torch2engine.serving.processor.processor import Processor
from torch2engine.trt.local_hardware import choose_engine

__all__ = ["Array", "ArrayRunner", "OrtRunner", "Servable", "find_artifact", "open_runner"]

Array = npt.NDArray[Any]
Servable = EngineArtifact | BundleArtifact | OnnxArtifact
Source = str | os.PathLike[str] | Servable


class ArrayRunner(Protocol):
    """Answers calls with arrays; threads may share it."""

    def infer(self, inputs: Any) -> OrderedDict[str, Array]:
        """Answer one call, as `Processor.infer` does."""
        ...

    def infer_stream(self, items: Iterable[Any], depth: int) -> Generator[OrderedDict[str, Array]]:
        """Answer calls in their order, as `Processor.infer_stream` does."""
        ...

    def close(self) -> None:
        """Give everything back."""


class OrtRunner:
    """An exported model on ONNX Runtime's CPU provider, called like a `Processor`.

    Args:
        artifact: the exported model.

    Raises:
        UnsupportedOperatorError, ArtifactError: ONNX Runtime can't run it.
    """

    def __init__(self, artifact: OnnxArtifact) -> None:
        self._signature: Signature = artifact.signature
        self._profiles: Sequence[Profile] = artifact.profiles
        self._live_arrays = live_arrays(artifact)
        self._session = OrtSession(artifact.checked_onnx_path)

    def infer(self, inputs: Any) -> OrderedDict[str, Array]:
        """Answer one call; arguments and errors are those of `Processor.infer`.

        Results in bfloat16 come as float32, since numpy has no bfloat16.
        """
        call = check_call(self._signature, self._profiles, inputs, self._live_arrays)
        feeds: dict[str, Array] = {}
        for spec, array in zip(self._signature.inputs, call.arrays, strict=True):
            # numpy has no bfloat16, and `OrtSession` takes such inputs in float32.
            feeds[spec.name] = array.astype("float32" if spec.dtype == "bfloat16" else spec.dtype, copy=False)
        answers = self._session(feeds)
        return OrderedDict((spec.name, answers[spec.name]) for spec in self._signature.outputs)

    def infer_stream(self, items: Iterable[Any], depth: int) -> Generator[OrderedDict[str, Array]]:
        """Answer calls one after the other; there are no copies that could overlap."""
        for item in items:
            yield self.infer(item)

    def close(self) -> None:
        """The session ends with its last reference."""


def find_artifact(source: Any) -> Servable:
    """The artifact of a folder, or the artifact itself.

    Raises:
        ArtifactError: no artifact is there, it is damaged, or it needs PyTorch.
        InputError: neither a path nor an artifact.
    """
    if isinstance(source, (EngineArtifact, BundleArtifact, OnnxArtifact)):
        return source
    if isinstance(source, (str, Path)):
        found = load_artifact(source, to_run=True)
        if not isinstance(found, PartsArtifact):
            return found
        raise ArtifactError(
            f"artifact '{source}'",
            path=str(source),
            got="a model in parts, some of which PyTorch runs",
            allowed="an engine or an exported model, since workers have no PyTorch",
            fix="deploy it without fallback, or serve it by torch2engine.load in workers of your own",
        )
    raise InputError(
        "artifact",
        got=kind_of(source),
        allowed="the path of a saved artifact, an EngineArtifact, a BundleArtifact or an OnnxArtifact",
        fix="pass the folder that save() wrote",
    )


def open_runner(artifact: Servable, streams: int = 2, runtime_config: RuntimeConfig = RuntimeConfig()) -> ArrayRunner:
    """Open an artifact: an engine on the first GPU that this process sees, an exported model on the CPU.

    Of a bundle, the plan for that GPU is taken.

    Args:
        artifact: what to run.
        streams, runtime_config: as for `Processor`; the CPU needs neither.

    Raises:
        Torch2EngineError: as `Processor`, or as ONNX Runtime refuses.
    """
    if isinstance(artifact, BundleArtifact):
        artifact = choose_engine(artifact, 0)
    if isinstance(artifact, EngineArtifact):
        return Processor(artifact, streams=streams, runtime_config=runtime_config)
    require_instance("runtime_config", runtime_config, RuntimeConfig)
    runtime_config.check_cpu("an exported model")
    return OrtRunner(artifact)
