"""Triton: an artifact → a model of Triton Inference Server's model repository.

Enters: engines or an exported model. Leaves: a folder with config.pbtxt and a numbered version, whole or not at all.
Separate from `triton_config` because this writes files. Triton itself is not needed: it only reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast

from torch2engine.artifact.atomic_folder import Replacement, put_folder, sync_folder
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.file_access import read_file, write_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.manifest import LIMIT_BYTES
from torch2engine.artifact.model_graph import is_model_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import PLAN
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.wording import did_you_mean
from torch2engine.onnx_graph.ort_session import element_dtypes, optimizer_level
from torch2engine.serving.array_runner import Servable, Source, find_artifact
from torch2engine.serving.triton_config import BACKENDS, Scheduling, config_text, without_comments

__all__ = ["export_triton"]

CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


def export_triton(
    artifact: Source | Sequence[Source],
    repository: str | os.PathLike[str],
    name: str,
    version: int = 1,
    *,
    backend: str | None = None,
    instances: int = 1,
    max_wait_s: float = 0.0,
) -> Path:
    """Write a model into the model repository of a Triton Inference Server.

    Preprocessing is part of the graph, so clients send bytes. Requests are merged if dimension 0 of every input and
    output is one axis whose entries don't influence each other. Otherwise each is answered alone; the first line of
    config.pbtxt says why.

    Args:
        artifact: the folder that `save` wrote, an engine, a bundle or an exported model. Several engines of one model,
            for GPUs of different compute capabilities, are one model of Triton, which chooses by the GPU.
        repository: Triton's ``--model-repository``; it is made if it is missing.
        name: of the model; clients give it.
        version: of the model, at least 1. Triton serves the highest one. A version that is there is never replaced.
        backend: "tensorrt" for engines of TensorRT, or "onnxruntime" for the ONNX graph; None for what the artifact is.
        instances: on each GPU; each answers one batch at a time.
        max_wait_s: how long a request waits for others, in seconds. At 0 those are merged that wait for the engine.

    Returns:
        the model's folder, ``repository/name``.

    Raises:
        InputError: Triton can't serve such a model, or a wrong argument.
        ArtifactError: no artifact is there, or it is damaged; this version is there; or a model of this name has
            another configuration.

    >>> folder = t2e.export_triton(onnx, "model_repository", "net")
    >>> sorted(path.name for path in folder.iterdir())
    ['1', 'config.pbtxt']
    """
    _check_arguments(name, version, instances, max_wait_s)
    sources = cast("Sequence[Source]", artifact) if isinstance(artifact, (list, tuple)) else [artifact]
    found = [model for source in sources for model in _models_of(find_artifact(source), backend)]
    chosen = _choose_backend(found, backend)
    models = [_servable(one, chosen) for one in found]
    files = _plans_by_capability(models)
    optimizer = "ENABLE_ALL"
    if isinstance(models[0], OnnxArtifact):
        optimizer = optimizer_level(element_dtypes(models[0].checked_onnx_path))
    text = config_text(models[0], name, chosen, Scheduling(instances, max_wait_s), files, optimizer)
    target = Path(repository) / name
    if os.path.lexists(target / str(version)):
        _refuse_to_replace(target / str(version))

    def write(folder: Path) -> None:
        _put_config(target, text)
        _write_version(folder, models, files)

    with disk_errors(target):
        try:
            put_folder(target / str(version), write, _NOTHING_THERE)
        except BaseException:
            _take_config_back(target, text)
            raise
    return target


def _check_arguments(name: str, version: int, instances: int, max_wait_s: float) -> None:
    if not isinstance(cast("object", name), str) or not _NAME.fullmatch(name):
        allowed = "letters, digits, '_', '-' and '.', no sign but '_' first"
        raise InputError("name", got=repr(name), allowed=allowed, fix="rename the model, since a folder has its name")
    for what, value in (("version", version), ("instances", instances)):
        if isinstance(cast("object", value), bool) or not isinstance(cast("object", value), int) or value < 1:
            raise InputError(what, got=repr(value), allowed="an int of at least 1", fix="pass such a number")
    if not isinstance(cast("object", max_wait_s), (int, float)) or not 0 <= max_wait_s < float("inf"):
        raise InputError("max_wait_s", got=repr(max_wait_s), allowed="seconds, 0 or more", fix="pass such a number")


def _models_of(found: Servable, backend: str | None) -> Sequence[EngineArtifact | OnnxArtifact]:
    """The artifact itself; of a bundle the plans that Triton reads, or all where there are none to say why."""
    if not isinstance(found, BundleArtifact):
        return [found]
    if backend == "onnxruntime":
        return [found.exported()]
    engines = [found.engine(name) for name in found.plans]
    return [engine for engine in engines if engine.hardware.flavour == "tensorrt"] or engines[:1]


def _choose_backend(found: Sequence[EngineArtifact | OnnxArtifact], backend: str | None) -> str:
    if not found:
        raise InputError("artifact", got="an empty list", allowed="at least one artifact", fix="pass one")
    if backend is None:
        return "tensorrt" if isinstance(found[0], EngineArtifact) else "onnxruntime"
    if backend not in BACKENDS:
        fix = did_you_mean(backend, BACKENDS) or "pass one of these, or None"
        raise InputError("backend", got=repr(backend), allowed=" or ".join(map(repr, BACKENDS)), fix=fix)
    return backend


def _servable(artifact: EngineArtifact | OnnxArtifact, backend: str) -> EngineArtifact | OnnxArtifact:
    """The artifact in the form that the backend reads."""
    if backend != "tensorrt":
        return artifact.exported() if isinstance(artifact, EngineArtifact) else artifact
    if isinstance(artifact, OnnxArtifact):
        raise InputError(
            "backend",
            got="'tensorrt' for an exported model",
            allowed="an engine",
            fix="build it first: t2e.build(..., config=t2e.BuildConfig(flavour='tensorrt')), or pass "
            "backend='onnxruntime'",
        )
    hardware = artifact.hardware
    if hardware.flavour != "tensorrt":
        raise InputError(
            "backend",
            got=f"'tensorrt' for a plan of {hardware.flavour} {hardware.flavour_version}",
            allowed="a plan of tensorrt, since Triton's backend reads no other",
            fix="build it with BuildConfig(flavour='tensorrt'), or pass backend='onnxruntime'",
        )
    return artifact


def _plans_by_capability(models: Sequence[EngineArtifact | OnnxArtifact]) -> dict[str, str]:
    """Compute capability -> plan, for several engines; empty for one model.

    Raises:
        InputError: they are not engines of one model for different GPUs.
    """
    if len(models) == 1:
        return {}
    files: dict[str, str] = {}
    for model in models:
        if not isinstance(model, EngineArtifact):
            raise _several(f"{len(models)} exported models", "one, which every GPU runs", "pass one of them")
        if (model.signature, model.profiles) != (models[0].signature, models[0].profiles):
            raise _several("engines of different signatures or profiles", "engines of one model", "build them alike")
        capabilities = _capabilities(model)
        if not capabilities:
            got = "an engine that says no compute capability"
            raise _several(got, "engines that were built on a GPU", "pass that engine alone")
        for capability in capabilities:
            if capability in files:
                got = f"two engines for compute capability {capability}"
                raise _several(got, "one for each compute capability", "leave one out")
            files[capability] = _plan_name(model)
    return files


def _capabilities(engine: EngineArtifact) -> list[str]:
    hardware = engine.hardware
    own = () if hardware.compute_capability is None else (hardware.compute_capability,)
    return [f"{major}.{minor}" for major, minor in hardware.compute_capabilities or own]


def _plan_name(engine: EngineArtifact) -> str:
    return f"model_{_capabilities(engine)[0]}.plan"


def _several(got: str, allowed: str, fix: str) -> InputError:
    return InputError("artifact", got=got, allowed=allowed, fix=fix)


def _put_config(target: Path, text: str) -> None:
    """Put the configuration there before a version, so that no server guesses one.

    The version's own unfinished folder lies in `target` meanwhile, and shows other exports that somebody needs the
    configuration.

    Raises:
        ArtifactError: another configuration is there.
    """
    with _locked(target):
        if not _write_new(target / CONFIG, text.encode()):
            _check_config(target, text)


def _take_config_back(target: Path, text: str) -> None:
    """Remove the configuration of a model without versions. It stays if anything else lies beside it."""
    with contextlib.suppress(OSError), _locked(target):  # the failure itself is what the caller shall see
        config = target / CONFIG
        if os.listdir(target) == [CONFIG] and config.read_bytes() == text.encode():
            config.unlink()
        target.rmdir()


@contextlib.contextmanager
def _locked(target: Path) -> Generator[None]:
    """Keep other exports of this model from writing or removing its configuration meanwhile."""
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes) -> bool:
    """Write a file in one step; False if there is one already."""
    written = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_file(written, data)
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        written.rename(path)
    finally:
        written.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _check_config(target: Path, text: str) -> None:
    """Refuse to change the configuration of a model's other versions."""
    config = target / CONFIG
    with disk_errors(target, CONFIG):
        present = bytes(read_file(config, LIMIT_BYTES)).decode("utf-8", "replace")
    ours = without_comments(text)
    theirs = without_comments(present)
    if ours != theirs:
        line = next((line for line in theirs if line not in ours), "less than these lines")
        raise ArtifactError(
            f"Triton model '{target}'",
            got=f"{CONFIG} with '{line.strip()}'",
            allowed="the same configuration for all versions of a model",
            fix=f"export it under another name, or move {CONFIG} away, and a new one is written",
            path=str(config),
        )


def _refuse_to_replace(path: Path) -> NoReturn:
    raise ArtifactError(
        f"Triton model '{path}'",
        got="something at that path",
        allowed="a new version, since a server may read the other one now",
        fix="pass the next version",
        path=str(path),
    )


# Another process may write this version meanwhile.
_NOTHING_THERE = Replacement(check=_refuse_to_replace, check_leftover=_refuse_to_replace)


def _write_version(folder: Path, models: Sequence[EngineArtifact | OnnxArtifact], files: Mapping[str, str]) -> None:
    for model in models:
        if isinstance(model, EngineArtifact):
            model.copy_files(folder, [PLAN])
            if files:
                (folder / PLAN).rename(folder / _plan_name(model))
        else:
            model.copy_files(folder, [name for name in model.files if is_model_file(name)])
