"""`push_to_hub` and `from_hub`, by huggingface_hub's own client against a Hub on this host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torch2engine as t2e
from tests.support.local_hub import local_hub
from tests.support.sample_artifacts import fresh_engine, fresh_onnx
from torch2engine.core.errors import Torch2EngineError


class Hub:
    """A Hub over a folder, and a client's cache of its own."""

    def __init__(self, folder: Path, endpoint: str, asked: list[str]) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.asked = asked

    def push(self, artifact: Any, repository: str = "me/net") -> str:
        """Push, and give the address of the commit."""
        return t2e.push_to_hub(artifact, repository, token="secret", endpoint=self.endpoint)

    def fetch(self, repository: str = "me/net", **options: Any) -> t2e.OnnxArtifact:
        """Fetch."""
        return t2e.from_hub(repository, cache=self.folder.parent / "cache", endpoint=self.endpoint, **options)

    def refusal(self, repository: str = "me/net", **options: Any) -> str:
        """The text of the ArtifactError."""
        with pytest.raises(Torch2EngineError) as caught:
            self.fetch(repository, **options)
        assert type(caught.value) is t2e.ArtifactError
        return str(caught.value)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    before = set(threading.enumerate())
    with local_hub(tmp_path / "hub") as (endpoint, asked):
        yield Hub(tmp_path / "hub", endpoint, asked)
    # One more would keep the random numbers of other tests from going back; that of tqdm draws none.
    others = [thread for thread in threading.enumerate() if type(thread).__module__ != "tqdm._monitor"]
    assert set(others) <= before


def test_engine_travels_as_its_exported_model(hub: Hub, tmp_path: Path) -> None:
    """Neither the plan nor its kernels go to the Hub; what comes back is the exported model, byte for byte."""
    engine = fresh_engine(tmp_path / "engine")
    address = hub.push(engine.save(tmp_path / "engine.t2e"))
    commit = address.rpartition("/")[2]
    assert address == f"{hub.endpoint}/me/net/commit/{commit}"
    pushed = {path.name for path in (hub.folder / "me" / "net" / commit).iterdir()}
    assert pushed == {"manifest.json", "model.onnx", "model.onnx.data"}
    found = hub.fetch()
    assert isinstance(found, t2e.OnnxArtifact)
    assert found.manifest() == engine.exported().manifest()
    assert {name: found.read(name) for name in found.files} == {
        name: engine.read(name) for name in ("model.onnx", "model.onnx.data")
    }
    hub.push(t2e.bundle(tmp_path / "bundle.t2e", [engine]), "me/bundle")
    assert hub.fetch("me/bundle").read("model.onnx") == engine.read("model.onnx")


def test_all_files_are_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    """The branch is asked once, for the manifest; a commit may be named, and other files of the repository stay."""
    first = hub.push(fresh_onnx(tmp_path / "first", "first").with_report({"of": "a deploy"})).rpartition("/")[2]
    assert not (hub.folder / "me" / "net" / first / "report.json").exists()
    (hub.folder / "me" / "net" / first / "README.md").write_text("a card")
    second = hub.push(fresh_onnx(tmp_path / "second", "second")).rpartition("/")[2]
    hub.asked.clear()
    assert hub.fetch().read("model.onnx.data") == b"weights of second"
    assert {line.split()[1].split("/resolve/")[1] for line in hub.asked} == {
        "main/manifest.json",
        f"{second}/model.onnx",
        f"{second}/model.onnx.data",
    }
    assert hub.fetch(revision=first).read("model.onnx.data") == b"weights of first"
    assert (hub.folder / "me" / "net" / second / "README.md").read_text() == "a card"


def test_artifact_outlives_the_cache(hub: Hub, tmp_path: Path) -> None:
    """Whoever clears huggingface_hub's cache takes nothing away, and a save has regular files."""
    hub.push(fresh_onnx(tmp_path / "model"))
    found = hub.fetch()
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert found.onnx_path.is_file()
    saved = found.save(tmp_path / "saved.t2e")
    assert t2e.OnnxArtifact.load(saved).read("model.onnx.data") == b"weights of an ONNX model"


def test_what_is_no_exported_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    """A changed file, a repository without a manifest, a missing one, and an engine that somebody put there."""
    fix = "see the name, the revision, the token and the network; push_to_hub writes such a repository"
    allowed = "a repository with an exported model, which this token may use"
    missing = hub.refusal("me/none")
    assert missing.startswith("Hub repository 'me/none': got \"RepositoryNotFoundError: 404 Client Error.")
    assert missing.endswith(f"; expected {allowed}; {fix}")
    folder = hub.folder / "me" / "net" / hub.push(fresh_onnx(tmp_path / "model")).rpartition("/")[2]
    (folder / "model.onnx.data").write_bytes(b"weights of another model")
    damaged = hub.refusal()
    assert damaged.startswith(f"artifact 'me/net@{folder.name}': got other bytes in 'model.onnx.data' than ")
    assert damaged.endswith("; push it anew, or name another commit in revision=")
    (folder / "manifest.json").unlink()
    assert "RemoteEntryNotFoundError" in hub.refusal(revision=folder.name[:7])
    plan = fresh_engine(tmp_path / "engine").save(tmp_path / "engine.t2e")
    (folder / "manifest.json").write_bytes((plan / "manifest.json").read_bytes())
    commit = hub.folder / "me" / "net" / "other"
    folder.rename(commit)
    message = hub.refusal(revision="other")
    assert message.startswith("artifact 'me/net@other': got an engine; expected an ONNX model")


def test_missing_client_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the line that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for call in (lambda: t2e.from_hub("me/net"), lambda: t2e.push_to_hub(fresh_onnx(tmp_path), "me/net")):
        with pytest.raises(t2e.InstallationError) as caught:
            call()
        assert str(caught.value) == (
            "Hugging Face Hub: got no module huggingface_hub; expected an installed huggingface_hub; "
            "`pip install 'torch2engine[hub]'`"
        )
