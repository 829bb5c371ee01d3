"""Hugging Face Hub: an exported model ↔ a repository of the Hub: the ONNX files and their manifest, never a plan.

Enters: an artifact, or a repository's name. Leaves: a commit, or an `OnnxArtifact` of which every byte was checked.
Separate because it alone knows the Hub. A plan belongs to one GPU and one TensorRT, so each host builds its own.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch2engine.artifact.file_access import OpenFile, read_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.manifest import LIMIT_BYTES, NAME, parse_manifest
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import check_kind
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError, InstallationError, Torch2EngineError
from torch2engine.core.wording import quote
from torch2engine.serving.array_runner import Source, find_artifact

__all__ = ["from_hub", "push_to_hub"]


def push_to_hub(
    artifact: Source,
    repository: str,
    *,
    revision: str | None = None,
    message: str = "Add an exported model",
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Put an exported model into a repository of the Hugging Face Hub, in one commit.

    Args:
        artifact: the folder that `save` wrote, or an artifact. Of an engine, the exported model that it was built from.
        repository: ``"owner/name"``; it is made if it is missing. Its other files stay.
        revision: the branch; None for the repository's own.
        message: of the commit.
        private: whether a new repository is private; None for the owner's default.
        token, endpoint: of the Hub; None for those that huggingface_hub finds.

    Returns:
        the commit's address.

    Raises:
        InstallationError: no huggingface_hub.
        ArtifactError: no exported model is there, or it is damaged; or the Hub refuses.

    >>> t2e.push_to_hub(onnx, "me/net", token="hf_...", endpoint=hub)
    'http.../me/net/commit/...'
    """
    hub = _import_hub()
    found = find_artifact(artifact)
    exported = (found if isinstance(found, OnnxArtifact) else found.exported()).with_report(None)
    api = hub.HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as scratch, _hub_errors(repository):
        folder = exported.save(Path(scratch) / "model.t2e")
        files = [hub.CommitOperationAdd(name, str(folder / name)) for name in (*exported.files, NAME)]
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message=message, revision=revision)
    return str(commit.commit_url)


def from_hub(
    repository: str,
    *,
    revision: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> OnnxArtifact:
    """Fetch an exported model from the Hugging Face Hub: only the files of its manifest, all of one commit.

    `t2e.build` makes an engine of it, and `t2e.ORTModule` runs it as it is. Nothing in it is code that runs.

    Args:
        repository: ``"owner/name"``.
        revision: a branch, tag or commit; None for the repository's own branch. Name a commit to get what you know.
        cache: huggingface_hub's folder; None for its own.
        token, endpoint: of the Hub; None for those that huggingface_hub finds.

    Raises:
        InstallationError: no huggingface_hub.
        ArtifactError: the Hub has no such exported model, or it is damaged.

    >>> _ = t2e.push_to_hub(onnx, "me/net", token="hf_...", endpoint=hub)
    >>> fetched = t2e.from_hub("me/net", cache="hub", endpoint=hub)
    >>> t2e.ORTModule(fetched)(sample).shape
    torch.Size([8, 10])
    """
    hub = _import_hub()
    api = hub.HfApi(endpoint=endpoint, token=token)

    def fetch(name: str, commit: str | None) -> Path:
        return Path(api.hf_hub_download(repository, name, revision=commit, cache_dir=cache))

    with _hub_errors(repository):
        manifest = fetch(NAME, revision)
        commit = manifest.parent.name  # the branch may move meanwhile
        place = f"{repository}@{commit}"
        with disk_errors(Path(place), NAME):
            fields, records = parse_manifest(bytes(read_file(manifest.resolve(), LIMIT_BYTES)), place)
        check_kind(fields, OnnxArtifact.kind, place)
        files = {NAME: manifest, **{name: fetch(name, commit) for name in records}}
    owner = scratch_folder()
    for name, path in files.items():
        OpenFile(path.resolve()).link_to(owner.path / name)  # the cache has links, which no artifact may have
    try:
        return OnnxArtifact.load(owner.path).linked()
    except ArtifactError as error:
        fix = "push it anew, or name another commit in revision="
        raise ArtifactError(f"artifact '{place}'", path=place, got=error.got, allowed=error.allowed, fix=fix) from error


def _import_hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise InstallationError(
            "Hugging Face Hub",
            got=f"no module {error.name}",
            allowed="an installed huggingface_hub",
            fix="`pip install 'torch2engine[hub]'`",
        ) from error


@contextmanager
def _hub_errors(repository: str) -> Generator[None]:
    """Say which repository it is that the Hub, or the way to it, refuses."""
    try:
        yield
    except Torch2EngineError:
        raise
    except Exception as error:  # huggingface_hub has no common class, and lets those of its HTTP client through
        raise ArtifactError(
            f"Hub repository '{repository}'",
            path=repository,
            got=quote(error),
            allowed="a repository with an exported model, which this token may use",
            fix="see the name, the revision, the token and the network; push_to_hub writes such a repository",
        ) from error
