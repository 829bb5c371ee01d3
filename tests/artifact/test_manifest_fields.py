"""A new field of the manifest is a change of `manifest_fields` alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.sample_artifacts import HARDWARE, fresh_onnx, sealed
from torch2engine.artifact import manifest_fields, onnx_artifact
from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.manifest_fields import ManifestFields
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import TEXT


@dataclass(frozen=True, kw_only=True)
class WithAuthor(ManifestFields):
    """The fields of a manifest and one more."""

    author: str | None = None


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class and the table of the manifest with one more field and row, as a change of the file would leave them."""
    old = manifest_fields._MANIFEST_JSON
    new = replace(old, make=WithAuthor, fields={**old.fields, "author": TEXT}, optional=(*old.optional, "author"))
    monkeypatch.setattr(manifest_fields, "_MANIFEST_JSON", new)
    monkeypatch.setattr(onnx_artifact, "ManifestFields", WithAuthor)


def onnx_by(author: str, folder: Path) -> OnnxArtifact:
    """An ONNX artifact with the new field."""
    return fresh_onnx(folder).replace(author=author)


def made_of(onnx: OnnxArtifact, folder: Path) -> Iterator[Artifact]:
    """Every artifact that stages make of another one."""
    yield load_artifact(onnx.save(folder / "onnx.t2e"))
    yield onnx.replace(precision="fp16")
    yield onnx.replace(folder=onnx.folder, owner=None)
    yield onnx.without_weights()
    yield onnx.linked()
    place = folder / "engine"
    place.mkdir()
    (place / "model.plan").write_bytes(b"a plan")
    engine = EngineArtifact.from_onnx(onnx, place, hardware=HARDWARE)
    yield load_artifact(engine.save(folder / "engine.t2e"))
    yield engine.with_runtime_cache(b"kernels")
    yield engine.without_onnx()
    yield engine.refitted(b"another plan", b"{}")
    yield EngineArtifact.from_manifest(engine.manifest(), {"model.plan": b"a plan"})
    bundle = BundleArtifact.of_engines([engine])
    yield from (bundle, bundle.exported(), *map(bundle.engine, bundle.plans))
    yield pickle.loads(pickle.dumps(engine))


def test_new_field_travels_with_every_artifact(tmp_path: Path) -> None:
    """One field of the class and one row of the table: saving, loading, building and refitting keep the value."""
    for artifact in made_of(onnx_by("Ada", tmp_path / "fresh"), tmp_path):
        assert artifact._fields.author == "Ada"  # pyright: ignore[reportAttributeAccessIssue]  # the new field
        assert artifact.manifest()["author"] == "Ada"


def test_artifact_without_the_new_field_is_still_read(tmp_path: Path) -> None:
    """An older artifact has no such member; the field then has its default, and is not written."""
    loaded = load_artifact(fresh_onnx(tmp_path / "fresh").save(tmp_path / "model.t2e"))
    assert loaded._fields.author is None  # pyright: ignore[reportAttributeAccessIssue]  # the new field
    assert "author" not in loaded.manifest()


def test_new_field_is_checked_by_its_row(tmp_path: Path) -> None:
    """A forged value is refused in the same words as everywhere."""
    path = onnx_by("Ada", tmp_path / "fresh").save(tmp_path / "model.t2e")
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(sealed({**manifest, "author": 1}))
    with pytest.raises(ArtifactError) as error:
        load_artifact(path)
    assert "got manifest field author = 1; expected a string that is not empty; " in str(error.value)
