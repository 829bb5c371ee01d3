"""`PartsArtifact`: a model of which some operators stay in PyTorch, on disk.

Enters: the files that a deploy with fallback wrote, or a folder that somebody saved. Leaves: the same, checked, and the
artifact of every part's engine. Separate because it holds whole artifacts of the other kinds, file by file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import ArtifactFiles, disk_errors
from torch2engine.artifact.manifest import NAME, canonical
from torch2engine.artifact.manifest_fields import Hardware, ManifestFields
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import CUT, PROGRAM, check_complete
from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import is_object
from torch2engine.core.package import public
from torch2engine.core.spec import Profile, Signature

__all__ = ["PartsArtifact", "write_engine"]

_AGAIN = "deploy the model again and save that"


@public
class PartsArtifact(Artifact):
    """A model in engines and PyTorch: torch's program, how it is cut, and the artifact of every part's engine.

    Args:
        folder: holds ``program.pt2``, ``cut.json``, ``weights.json`` if the model can be refitted, and what
            `write_engine` wrote. The files must not change any more.
        signature: what a call takes and gives.
        profiles: at least one if the signature has axes.
        precision: the lowest arithmetic of the engines, a name of the table of precisions.
        versions: library -> version, of what made it.
        owner: an object to hold as long as the folder is needed, such as `scratch_folder()` returns.

    Raises:
        ArtifactError: a file is missing, or the facts contradict themselves.

    >>> class Spectrum(torch.nn.Module):
    ...     def forward(self, x):
    ...         weights = (x.mT @ x).softmax(-1)
    ...         return torch.linalg.eigvalsh(weights + weights.mT)
    >>> module = t2e.deploy(Spectrum(), torch.rand(5, 3), runtime="onnxruntime", fallback=True)
    >>> t2e.PartsArtifact.load(module.save("parts.t2e")).engines
    ('part-0-0',)
    """

    kind = "parts"

    __slots__ = ()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        signature: Signature,
        profiles: Sequence[Profile],
        precision: str,
        versions: Mapping[str, str],
        owner: object = None,
    ) -> None:
        place = Path(folder).absolute()
        with disk_errors(place):
            names = sorted(os.listdir(place))
        check_complete(names, (PROGRAM, CUT), str(place))
        self._fields = ManifestFields(
            kind=self.kind,
            signature=signature,
            profiles=tuple(profiles),
            precision=precision,
            versions=versions,
        )
        self._artifact_files = ArtifactFiles(folder=place, owner=owner, names=names, is_private=owner is not None)

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of the parts' engines."""
        return tuple(name.removesuffix(f".{NAME}") for name in self.files if name.endswith(f".{NAME}"))

    @property
    def hardware(self) -> Hardware | None:
        """Where the engines were built; None if ONNX Runtime runs all of them."""
        artifacts = [self.engine(name) for name in self.engines]
        return next((artifact.hardware for artifact in artifacts if isinstance(artifact, EngineArtifact)), None)

    def engine(self, name: str) -> OnnxArtifact | EngineArtifact:
        """The artifact of one part's engine, in memory.

        Args:
            name: one of `engines`.

        Raises:
            ArtifactError: it is not here, or it is not valid.
        """
        manifest = self._manifest(name)
        kind = EngineArtifact if manifest.get("kind") == EngineArtifact.kind else OnnxArtifact
        prefix = f"{name}."
        files = {file.removeprefix(prefix): self.read(file) for file in self.files if file.startswith(prefix)}
        return kind.from_manifest(manifest, {file: data for file, data in files.items() if file != NAME})

    def exported(self) -> PartsArtifact:
        """The same with the exported model of every engine in the engine's place, for a machine without a GPU.

        Raises:
            ArtifactError: an engine has none.
        """
        artifacts = {name: self.engine(name) for name in self.engines}
        built = {name: artifact for name, artifact in artifacts.items() if isinstance(artifact, EngineArtifact)}
        return self.with_changes({}, {name: artifact.exported() for name, artifact in built.items()})

    def with_changes(
        self, files: Mapping[str, bytes], engines: Mapping[str, OnnxArtifact | EngineArtifact]
    ) -> PartsArtifact:
        """The same with other bytes for some files, and with other artifacts for some engines.

        Args:
            files: name of a file that belongs to no engine -> its bytes.
            engines: name of an engine -> its new artifact.
        """
        changes: dict[str, bytes | None] = dict(files)
        for name, artifact in engines.items():
            changes |= {file: None for file in self.files if file.startswith(f"{name}.")}
            changes |= {f"{name}.{file}": artifact.read(file) for file in artifact.files}
            changes[f"{name}.{NAME}"] = canonical(artifact.manifest())
        return self._with_files(changes)

    def _manifest(self, name: str) -> dict[str, Any]:
        file = f"{name}.{NAME}"
        if file not in self.files:
            raise _refusal(f"{self._artifact_files}", f"no '{file}'", "the engine of every part")
        try:
            manifest: Any = json.loads(self.read(file))
        except ValueError as error:
            raise _refusal(f"{self._artifact_files}", f"a '{file}' that is not JSON", "a manifest") from error
        if not is_object(manifest):
            raise _refusal(f"{self._artifact_files}", f"a '{file}' that is no JSON object", "a manifest")
        return manifest


def _refusal(where: str, got: str, allowed: str) -> ArtifactError:
    return ArtifactError(f"artifact '{where}'", got=got, allowed=allowed, fix=_AGAIN, path=where)


def write_engine(folder: Path, name: str, artifact: OnnxArtifact | EngineArtifact) -> None:
    """Write the artifact of one part's engine into the folder of a `PartsArtifact`.

    Args:
        folder: where it goes; nothing of this name is there.
        name: under which `PartsArtifact.engine` finds it.
        artifact: all files of it are copied.

    Raises:
        ArtifactError: a file of it was changed, or the disk refused.
    """
    files: Iterable[str] = artifact.files
    with disk_errors(folder):
        for file in files:
            write_file(folder / f"{name}.{file}", artifact.read(file))
        write_file(folder / f"{name}.{NAME}", canonical(artifact.manifest()))
