"""`OnnxArtifact` and `EngineArtifact`: a model between two stages, and on disk.

Enters: the files that a stage wrote and the facts that go with them, or a folder somebody saved. Leaves: the same,
checked: no byte reaches ONNX Runtime or TensorRT that is not the byte that was saved. A room of its own, without
torch, so that serving reads what training wrote.

A saved artifact is a folder::

    model.t2e/
        manifest.json       the facts, and the SHA-256 of every other file
        model.onnx          with model.onnx.data beside it if the weights are external
        model.plan          the bare TensorRT plan (engines only)
        weights.json        where live weights go (if the engine can be refitted)
        runtime.cache       TensorRT-RTX's compiled kernels (if saved)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch2engine.artifact.base import ALL_FILES, ONNX, ONNX_DATA, PLAN, RUNTIME_CACHE, WEIGHTS, Artifact, load_parts
from torch2engine.artifact.folder import ScratchFolder, scratch_folder
from torch2engine.artifact.manifest import Facts, Hardware
from torch2engine.core.errors import ArtifactError
from torch2engine.core.spec import Profile, Signature

__all__ = [
    "WEIGHTS",
    "EngineArtifact",
    "Hardware",
    "OnnxArtifact",
    "ScratchFolder",
    "load_artifact",
    "scratch_folder",
]


class OnnxArtifact(Artifact):
    """An ONNX model with its signature.

    Args:
        folder: holds ``model.onnx``, ``model.onnx.data`` if the weights are external, ``weights.json`` if there is one.
            The files must not change any more.
        signature: what a call takes and gives.
        profiles: at least one if the signature has axes.
        precision: the arithmetic: "fp32", "tf32", "fp16" or "bf16".
        versions: library -> version, of what made it.
        owner: an object to hold as long as the folder is needed, such as `scratch_folder()` returns.

    Raises:
        ArtifactError: there is no model.onnx, or the facts contradict themselves.
    """

    kind = "onnx"
    _travelling = (ONNX, ONNX_DATA, WEIGHTS)
    _needed = (ONNX, ONNX_DATA)

    __slots__ = ()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        signature: Signature,
        profiles: Sequence[Profile],
        precision: str,
        versions: Mapping[str, str] | None = None,
        owner: object = None,
    ) -> None:
        facts = Facts(
            kind=self.kind,
            signature=signature,
            profiles=tuple(profiles),
            precision=precision,
            versions=versions or {},
        )
        self._fill_from_folder(facts, folder, owner, (ONNX, ONNX_DATA, WEIGHTS))

    @property
    def onnx_path(self) -> Path:
        """``model.onnx``; external data lies beside it."""
        return self.folder / ONNX


class EngineArtifact(Artifact):
    """A TensorRT plan with its signature and the hardware that it was built on.

    Args:
        folder: holds ``model.plan`` and, if they are kept, the ONNX files, ``weights.json`` and ``runtime.cache``.
            The files must not change any more.
        hardware: flavour, versions and GPU of the build.
        signature, profiles, precision, versions, owner: as in `OnnxArtifact`.

    Raises:
        ArtifactError: there is no model.plan, or the facts contradict themselves.
    """

    kind = "engine"
    _travelling = (PLAN, RUNTIME_CACHE, WEIGHTS)
    _needed = (PLAN,)

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
        facts = Facts(
            kind=self.kind,
            signature=signature,
            profiles=tuple(profiles),
            precision=precision,
            versions=versions or {},
            hardware=hardware,
        )
        self._fill_from_folder(facts, folder, owner, ALL_FILES)

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
        """The engine that was built from an ONNX artifact, with the ONNX files kept beside the plan.

        Args:
            onnx: what it was built from; its files are linked into `folder`, or copied where links can't be made.
            folder: holds the finished ``model.plan``.
            hardware: flavour, versions and GPU of the build.
            signature, profiles, precision: those of `onnx` if None.
            versions: added to those of `onnx`.
            owner: an object to hold as long as the folder is needed.

        Raises:
            ArtifactError: there is no model.plan, an ONNX file can't be linked or copied, or the facts contradict
                themselves.
        """
        onnx._content.link_into(Path(folder))
        engine = cls(
            folder,
            hardware=hardware,
            signature=signature or onnx.signature,
            profiles=onnx.profiles if profiles is None else profiles,
            precision=precision or onnx.precision,
            versions={**onnx.versions, **(versions or {})},
            owner=owner,
        )
        engine._content.inherit(onnx._content)
        return engine

    @property
    def hardware(self) -> Hardware:
        """Where it was built."""
        assert self._facts.hardware is not None
        return self._facts.hardware

    @property
    def plan_path(self) -> Path:
        """``model.plan``, which other tools read as it is."""
        return self._content.path(PLAN)

    @property
    def onnx_path(self) -> Path | None:
        """``model.onnx`` that the plan was built from; None if it was not kept."""
        return self._content.path(ONNX) if ONNX in self.files else None

    @property
    def runtime_cache_path(self) -> Path | None:
        """``runtime.cache``; None if there is none."""
        return self._content.path(RUNTIME_CACHE) if RUNTIME_CACHE in self.files else None

    @property
    def plan_sha256(self) -> str:
        """The plan's SHA-256 in hex: equal for equal plans, so a process can share live engines by it."""
        return self._content.record(PLAN).sha256

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
        return memoryview(self._content.read(PLAN)).toreadonly()

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
        return self.from_parts(self._facts, self._content.replaced(RUNTIME_CACHE, bytes(data) or None))

    def without_onnx(self) -> EngineArtifact:
        """The same engine without the ONNX files that it was built from."""
        return self.from_parts(self._facts, self._content.replaced(ONNX, None).replaced(ONNX_DATA, None))

    def has_model_of(self, other: EngineArtifact) -> bool:
        """Whether the ONNX files and the weight program that the other has beside its plan are here, byte for byte."""
        names = [name for name in (ONNX, ONNX_DATA, WEIGHTS) if name in other.files]
        return all(name in self.files and self._content.record(name) == other._content.record(name) for name in names)

    def refitted(self, plan: bytes, weights: bytes, keep_onnx: bool = False) -> EngineArtifact:
        """The same engine with other weights.

        Args:
            plan: TensorRT's, of the engine as it is now.
            weights: the weight program, which tells what weights these are.
            keep_onnx: keep the ONNX files, which mostly hold the old ones.
        """
        content = (self if keep_onnx else self.without_onnx())._content.replaced(PLAN, plan)
        return self.from_parts(self._facts, content.replaced(WEIGHTS, weights))

    def check_hardware(self, current: Hardware) -> None:
        """Refuse to run where TensorRT would refuse, before it sees a byte.

        A plan belongs to the flavour and the major.minor.patch that built it. A TensorRT plan also belongs to its
        compute capability; a TensorRT-RTX plan to those it was built for, if they were recorded (otherwise TensorRT-RTX
        decides). Other drivers and other GPUs of the same compute capability are fine.

        Args:
            current: this process; without a GPU its compute capability is None and is not compared.

        Raises:
            ArtifactError: naming both sides and the line that rebuilds the engine.
        """
        built = self.hardware
        if (built.flavour, _patch(built.flavour_version)) != (current.flavour, _patch(current.flavour_version)):
            raise self._hardware_error(
                f"its plan was built by {built.flavour} {built.flavour_version}",
                f"this process has {current.flavour} {current.flavour_version} and a plan runs in its own version only",
            )
        fits = built.compute_capabilities
        if not fits and built.flavour == "tensorrt" and built.compute_capability is not None:
            fits = (built.compute_capability,)
        if fits and current.compute_capability is not None and current.compute_capability not in fits:
            gpu = f" ({current.gpu})" if current.gpu else ""
            raise self._hardware_error(
                f"its plan was built for compute capability {_dotted(fits)}",
                f"this GPU{gpu} has {_dotted([current.compute_capability])}",
            )

    def _hardware_error(self, got: str, allowed: str) -> ArtifactError:
        # An artifact in memory has no ONNX, and asking for its path would write it to disk.
        onnx = self.onnx_path
        fix = f"rebuild it here: t2e.build({str(onnx)!r}, ...)" if onnx else "deploy the model again on this machine"
        where = str(self._content)
        return ArtifactError(f"artifact '{where}'", got=got, allowed=allowed, fix=fix, path=where)


def load_artifact(path: str | os.PathLike[str], to_run: bool = False) -> OnnxArtifact | EngineArtifact:
    """Load a saved artifact of either kind and check every byte of it.

    In this order: the folder is there; its manifest is readable, torch2engine's, undamaged, of a version that this
    torch2engine knows, and valid; every file that it lists is a regular file of that size and SHA-256. Other files in
    the folder are left alone.

    Args:
        path: the folder.
        to_run: hold the plan and the runtime cache in memory until they are first asked for, so that who runs the
            engine at once reads and hashes them once. Without it an artifact that is only looked at holds no bytes.

    Raises:
        ArtifactError: the first of these that fails; its ``path`` says where.
    """
    facts, content = load_parts(path, None, (PLAN, RUNTIME_CACHE) if to_run else ())
    kind = EngineArtifact if facts.kind == "engine" else OnnxArtifact
    return kind.from_parts(facts, content)


def _patch(version: str) -> list[str]:
    """major.minor.patch; TensorRT's fourth number is the build of the same library."""
    return version.split(".")[:3]


def _dotted(capabilities: Iterable[tuple[int, int]]) -> str:
    return " or ".join(f"{major}.{minor}" for major, minor in capabilities)
