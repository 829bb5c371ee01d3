"""`EngineArtifact`: a TensorRT plan with everything needed to run it, between two stages and on disk.

Enters: the files that a stage wrote and the facts that go with them, or a folder that somebody saved. Leaves: the
same, checked: TensorRT gets exactly the bytes that were saved. Separate from `onnx_artifact` because an engine belongs
to hardware and a TensorRT version. It needs no torch, so serving reads what training wrote.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.hardware_fit import find_mismatch
from torch2engine.artifact.manifest_fields import Hardware, ManifestFields
from torch2engine.artifact.model_graph import is_model_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import ONNX, PLAN, REPORT, RUNTIME_CACHE, WEIGHTS
from torch2engine.core.package import public
from torch2engine.core.spec import Profile, Signature

__all__ = ["EngineArtifact"]


@public
class EngineArtifact(Artifact):
    """A TensorRT plan with its signature and the hardware that it was built on.

    Args:
        folder: holds ``model.plan``, and optionally the ONNX files, ``weights.json`` and ``runtime.cache``. The files
            must not change any more.
        hardware: flavour, versions and GPU of the build.
        signature, profiles, precision, versions, owner: as in `OnnxArtifact`.

    Raises:
        ArtifactError: there is no model.plan, or the facts contradict themselves.

    >>> folder = engine.save("model.t2e")
    >>> loaded = t2e.EngineArtifact.load(folder)
    >>> loaded.precision, loaded.hardware.flavour, loaded.files
    ('fp32', 'tensorrt_rtx', ('model.onnx', 'model.plan'))
    """

    kind = "engine"
    _known_files = (ONNX, WEIGHTS, PLAN, RUNTIME_CACHE)

    __slots__ = ()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        hardware: Hardware,
        signature: Signature,
        profiles: Sequence[Profile],
        precision: str,
        versions: Mapping[str, str] | None = None,
        owner: object = None,
    ) -> None:
        fields = ManifestFields(
            kind=self.kind,
            signature=signature,
            profiles=tuple(profiles),
            precision=precision,
            versions=versions or {},
            hardware=hardware,
        )
        self._take_folder(fields, folder, owner)

    @classmethod
    def from_onnx(
        cls,
        onnx: OnnxArtifact,
        folder: str | os.PathLike[str],
        *,
        hardware: Hardware,
        signature: Signature | None = None,
        profiles: Sequence[Profile] | None = None,
        precision: str | None = None,
        versions: Mapping[str, str] | None = None,
        owner: object = None,
    ) -> EngineArtifact:
        """Make the artifact of an engine that was built from an ONNX artifact; its files stay beside the plan.

        Args:
            onnx: the model that the engine was built from. Its files are linked into `folder`, or copied where links
                can't be made.
            folder: holds the finished ``model.plan``.
            hardware: flavour, versions and GPU of the build.
            signature, profiles, precision: those of `onnx` if None.
            versions: added to those of `onnx`.
            owner: an object to hold as long as the folder is needed.

        Raises:
            ArtifactError: there is no model.plan, an ONNX file can't be linked or copied, or the facts contradict
                themselves.
        """
        onnx._artifact_files.link_into(Path(folder))
        fields = dataclasses.replace(
            onnx._fields,
            kind=cls.kind,
            hardware=hardware,
            signature=signature or onnx.signature,
            profiles=onnx.profiles if profiles is None else tuple(profiles),
            precision=precision or onnx.precision,
            versions={**onnx.versions, **(versions or {})},
        )
        engine = cls.__new__(cls)
        engine._take_folder(fields, folder, owner, is_private=onnx._artifact_files.is_private)
        engine._artifact_files.take_records(onnx._artifact_files)
        return engine

    @property
    def hardware(self) -> Hardware:
        """The hardware and versions that the engine was built on."""
        assert self._fields.hardware is not None
        return self._fields.hardware

    @property
    def plan_path(self) -> Path:
        """``model.plan``, which other tools read as it is."""
        return self._artifact_files.path(PLAN)

    @property
    def model_bytes(self) -> int:
        """The size of ``model.plan``."""
        return self.plan_path.stat().st_size

    @property
    def onnx_path(self) -> Path | None:
        """``model.onnx`` that the plan was built from; None if it is not here."""
        return self._artifact_files.path(ONNX) if ONNX in self.files else None

    @property
    def checked_onnx_path(self) -> Path | None:
        """The path of a checked ``model.onnx`` that only this process can write to; None without it."""
        return self._artifact_files.verified_path(ONNX) if ONNX in self.files else None

    @property
    def runtime_cache_path(self) -> Path | None:
        """``runtime.cache``; None if there is none."""
        return self._artifact_files.path(RUNTIME_CACHE) if RUNTIME_CACHE in self.files else None

    @property
    def plan_sha256(self) -> str:
        """The plan's SHA-256 in hex: equal for equal plans, so a process can share live engines by it."""
        return self._artifact_files.record(PLAN).sha256

    def exported(self) -> OnnxArtifact:
        """The exported model that the plan was built from, for a machine that can't run the plan.

        Raises:
            ArtifactError: it is not here.
        """
        if ONNX not in self.files:
            raise self._refusal(
                "an engine without its model.onnx",
                "one with it",
                "save the module that deploy() gave before any refit, or deploy with runtime='onnxruntime'",
            )
        fields = dataclasses.replace(self._fields, kind=OnnxArtifact.kind, hardware=None)
        return OnnxArtifact.from_parts(
            fields, self._artifact_files.replaced({PLAN: None, RUNTIME_CACHE: None, REPORT: None})
        )

    def read_plan(self) -> bytes:
        """The plan, checked against the manifest once more: a plan is code, and the file may have changed since.

        Raises:
            ArtifactError: the file is gone or holds other bytes.
        """
        return self.read(PLAN)

    def plan_buffer(self) -> memoryview:
        """The plan as `read_plan` gives it, without a copy where it is in memory already; read-only.

        Raises:
            ArtifactError: the file is gone or holds other bytes.
        """
        return memoryview(self._artifact_files.read(PLAN)).toreadonly()

    def read_runtime_cache(self) -> bytes:
        """TensorRT-RTX's compiled kernels, checked against the manifest; b"" if there are none.

        Raises:
            ArtifactError: the file is gone or holds other bytes.
        """
        return self.read(RUNTIME_CACHE) if RUNTIME_CACHE in self.files else b""

    def with_runtime_cache(self, data: bytes | bytearray | memoryview) -> EngineArtifact:
        """The same engine with other compiled kernels; this one stays as it is.

        The plan is neither copied nor hashed again: both artifacts read it where it lies.

        Args:
            data: what TensorRT-RTX serialised, copied unless it is bytes; b"" leaves the cache out.
        """
        return self._with_files({RUNTIME_CACHE: bytes(data) or None})

    def without_onnx(self) -> EngineArtifact:
        """The same engine without the ONNX files that it was built from."""
        return self._with_files({name: None for name in self.files if is_model_file(name)})

    def has_model_of(self, other: EngineArtifact) -> bool:
        """Whether all ONNX files and the weight program of the other are here too, byte for byte."""
        names = [name for name in other.files if is_model_file(name) or name == WEIGHTS]
        mine = self._artifact_files
        theirs = other._artifact_files
        return all(name in self.files and mine.record(name) == theirs.record(name) for name in names)

    def refitted(self, plan: bytes, weights: bytes, keep_onnx: bool = False) -> EngineArtifact:
        """The same engine with other weights.

        Args:
            plan: TensorRT's, of the engine as it is now.
            weights: the weight program, which says which weights these are.
            keep_onnx: keep the ONNX files, which mostly hold the old weights.
        """
        artifact = self if keep_onnx else self.without_onnx()
        return artifact._with_files({PLAN: plan, WEIGHTS: weights})

    def check_hardware(self, current: Hardware) -> None:
        """Refuse to run where TensorRT would refuse, before TensorRT reads a byte; by the rules of `find_mismatch`.

        Args:
            current: this process; without a GPU its compute capability is None and is not compared.

        Raises:
            ArtifactError: naming both sides and the line that rebuilds the engine.
        """
        mismatch = find_mismatch(self.hardware, current)
        if mismatch is None:
            return
        # An artifact in memory has no ONNX, and asking for its path would write it to disk.
        onnx = self.onnx_path
        fix = f"rebuild it here: t2e.build({str(onnx)!r}, ...)" if onnx else "deploy the model again on this machine"
        raise self._refusal(mismatch.got, mismatch.allowed, fix)

    @classmethod
    def _is_pickled(cls, name: str) -> bool:
        return not is_model_file(name)

    @classmethod
    def _is_needed(cls, name: str) -> bool:
        return name == PLAN
