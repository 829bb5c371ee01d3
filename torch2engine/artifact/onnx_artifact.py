"""`OnnxArtifact`: an ONNX model between two stages, and on disk.

Enters: the files that a stage wrote and the facts that go with them, or a folder that somebody saved. Leaves: the
same, checked: ONNX Runtime and TensorRT get exactly the bytes that were saved. Separate from `engine_artifact` because
a model and an engine carry other files and other facts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.manifest_fields import ManifestFields
from torch2engine.artifact.model_graph import is_model_file
from torch2engine.artifact.saved_folder import ONNX, WEIGHTS
from torch2engine.core.live_parameter_data import encode_value
from torch2engine.core.package import public
from torch2engine.core.spec import Profile, Signature

__all__ = ["OnnxArtifact"]


@public
class OnnxArtifact(Artifact):
    """An ONNX model with its signature.

    Args:
        folder: holds ``model.onnx``, beside it the files of its external data, whatever their names, and
            ``weights.json`` if there is one. The files must not change any more.
        signature: what a call takes and gives.
        profiles: at least one if the signature has axes.
        precision: the arithmetic, a name of the table of precisions, e.g. "fp32".
        versions: library -> version, of what made it.
        influences: {axis: the operator that lets its entries influence each other, or None}. None instead of the dict
            if nobody has analysed the ONNX graph.
        live_values: {input: bytes of the live parameter that feeds it}; needed if the signature has live parameters.
        owner: an object to hold as long as the folder is needed, such as `scratch_folder()` returns.

    Raises:
        ArtifactError: there is no model.onnx, a data file is missing or lies elsewhere, or the facts contradict
            themselves.

    >>> folder = onnx.save("exported.t2e")
    >>> loaded = t2e.OnnxArtifact.load(folder)
    >>> loaded.precision, loaded.files
    ('fp32', ('model.onnx',))
    """

    kind = "onnx"
    _known_files = (ONNX, WEIGHTS)

    __slots__ = ()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        signature: Signature,
        profiles: Sequence[Profile],
        precision: str,
        versions: Mapping[str, str] | None = None,
        influences: Mapping[str, str | None] | None = None,
        live_values: Mapping[str, bytes] | None = None,
        owner: object = None,
    ) -> None:
        texts = {name: encode_value(value) for name, value in (live_values or {}).items()}
        fields = ManifestFields(
            kind=self.kind,
            signature=signature,
            profiles=tuple(profiles),
            precision=precision,
            versions=versions or {},
            influences=influences,
            live_values=texts or None,
        )
        self._take_folder(fields, folder, owner)

    @property
    def onnx_path(self) -> Path:
        """``model.onnx``; external data lies beside it."""
        return self.folder / ONNX

    @property
    def model_bytes(self) -> int:
        """The size of ``model.onnx`` with its external data."""
        return sum((self.folder / name).stat().st_size for name in self.files if is_model_file(name))

    @property
    def checked_onnx_path(self) -> Path:
        """The path of a checked ``model.onnx`` that only this process can write to."""
        return self._artifact_files.verified_path(ONNX)

    @classmethod
    def _is_needed(cls, name: str) -> bool:
        return is_model_file(name)
