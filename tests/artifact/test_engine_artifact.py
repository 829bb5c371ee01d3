"""An engine's own promises: the ONNX model that it keeps, its compiled kernels and its hardware."""

from __future__ import annotations

import gc
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_artifacts import HARDWARE, PROFILES, SIGNATURE, VERSIONS, fresh_engine, fresh_onnx, onnx_bytes
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError


def message(error: pytest.ExceptionInfo[ArtifactError], folder: Path) -> str:
    """An error's text with the test's own folder left out."""
    return str(error.value).replace(str(folder), "DIR")


def test_engine_from_onnx_links_the_files(tmp_path: Path) -> None:
    """The ONNX files beside the plan take no second copy on the disk, and facts come from the ONNX artifact."""
    onnx = fresh_onnx(tmp_path / "onnx")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "model.plan").write_bytes(b"a plan")
    engine = EngineArtifact.from_onnx(
        onnx, tmp_path / "engine", hardware=HARDWARE, profiles=PROFILES[:1], versions={"tensorrt": "10.16.1"}
    )
    assert engine.onnx_path is not None
    assert engine.onnx_path.samefile(onnx.onnx_path)
    assert (engine.signature, engine.profiles, engine.precision) == (SIGNATURE, PROFILES[:1], "fp32")
    assert engine.versions == {**VERSIONS, "tensorrt": "10.16.1"}


def test_engine_from_onnx_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another file system the files are copied."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    engine = fresh_engine(tmp_path)
    assert engine.read("model.onnx.data") == b"weights of an ONNX model"
    assert (engine.folder / "model.onnx").stat().st_nlink == 1


def test_engine_from_onnx_notices_an_onnx_file_that_changed(tmp_path: Path) -> None:
    """A loaded ONNX file that somebody overwrites is not passed off as what the plan was built from."""
    loaded = OnnxArtifact.load(fresh_onnx(tmp_path / "fresh").save(tmp_path / "onnx.t2e"))
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "model.plan").touch()
    engine = EngineArtifact.from_onnx(loaded, tmp_path / "engine", hardware=HARDWARE)
    with loaded.onnx_path.open("r+b") as file:
        file.write(b"AN")
    with pytest.raises(ArtifactError) as error:
        engine.save(tmp_path / "engine.t2e")
    assert error.value.got == "other bytes in 'model.onnx' than were saved"


def test_with_runtime_cache_gives_the_same_engine_with_other_kernels(tmp_path: Path) -> None:
    """The cache is replaced, added or taken away; facts and other files stay, and so does the artifact before."""
    old = fresh_engine(tmp_path)
    new = old.with_runtime_cache(b"other kernels")
    assert (new.read_runtime_cache(), old.read_runtime_cache()) == (b"other kernels", b"kernels of an ONNX model")
    assert (new.signature, new.profiles, new.hardware) == (old.signature, old.profiles, old.hardware)
    assert new.files == old.files
    assert new.read_plan() == old.read_plan()
    none = new.with_runtime_cache(b"")
    assert none.files == ("model.onnx", "model.onnx.data", "model.plan")
    assert (none.read_runtime_cache(), none.runtime_cache_path) == (b"", None)
    assert none.with_runtime_cache(bytearray(b"again")).read_runtime_cache() == b"again"


def test_with_runtime_cache_neither_copies_nor_hashes_the_plan(tmp_path: Path) -> None:
    """On the disk both artifacts name one file, in memory they read one buffer, and a known hash stays known."""
    loaded = EngineArtifact.load(fresh_engine(tmp_path).save(tmp_path / "model.t2e"))
    new = loaded.with_runtime_cache(b"other kernels")
    assert new.plan_path == loaded.plan_path == tmp_path / "model.t2e" / "model.plan"
    assert new.onnx_path == loaded.onnx_path
    pickled = pickle.loads(pickle.dumps(loaded))
    assert pickled.with_runtime_cache(b"x").plan_buffer().obj is pickled.plan_buffer().obj
    loaded.plan_path.unlink()
    assert new.plan_sha256 == loaded.plan_sha256
    files = {name: new.manifest()["files"][name]["bytes"] for name in new.files}
    assert files == {"model.onnx": len(onnx_bytes()), "model.onnx.data": 24, "model.plan": 23, "runtime.cache": 13}


def test_replaced_runtime_cache_survives_every_way_to_travel(tmp_path: Path) -> None:
    """Saved, saved onto itself, pickled and from a state_dict's parts, the engine has its new kernels."""
    path = fresh_engine(tmp_path).save(tmp_path / "model.t2e")
    new = EngineArtifact.load(path).with_runtime_cache(b"other kernels")
    parts = {name: new.read(name) for name in ("model.plan", "runtime.cache")}
    memory = EngineArtifact.from_manifest(json.loads(json.dumps(new.manifest())), parts)
    pickled = [pickle.loads(pickle.dumps(new, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    saved = [
        EngineArtifact.load(engine.save(tmp_path / f"{index}.t2e"))
        for index, engine in enumerate((new, memory, memory.with_runtime_cache(b"other kernels"), *pickled))
    ]
    again = EngineArtifact.load(new.save(path))
    for engine in (memory, *pickled, *saved, again):
        assert engine.read_runtime_cache() == b"other kernels"
        assert engine.read_plan() == b"a plan of an ONNX model"
    assert again.files == ("model.onnx", "model.onnx.data", "model.plan", "runtime.cache")


@pytest.mark.usefixtures("quick_collection")
def test_replaced_runtime_cache_lies_beside_the_linked_plan(tmp_path: Path) -> None:
    """Who asks for a folder gets one with every file, its plan a second name of the first; it goes with the engine."""
    old = EngineArtifact.load(fresh_engine(tmp_path).save(tmp_path / "model.t2e"))
    new = old.with_runtime_cache(b"other kernels")
    assert new.runtime_cache_path is not None
    assert new.runtime_cache_path.read_bytes() == b"other kernels"
    folder = new.folder
    assert new.runtime_cache_path.parent == folder != old.folder
    assert sorted(entry.name for entry in folder.iterdir()) == list(new.files)
    assert (folder / "model.plan").samefile(old.plan_path)
    assert old.read("runtime.cache") == b"kernels of an ONNX model"
    del new
    gc.collect()
    assert not folder.exists()
    assert old.plan_path.exists()


@pytest.mark.usefixtures("quick_collection")
def test_replaced_runtime_cache_holds_the_scratch_folder(tmp_path: Path) -> None:
    """An engine whose first artifact is gone still has its plan."""
    owner = scratch_folder()
    (owner.path / "model.plan").write_bytes(b"a plan")
    first = EngineArtifact(
        owner.path, signature=SIGNATURE, profiles=PROFILES, precision="fp32", hardware=HARDWARE, owner=owner
    )
    new = first.with_runtime_cache(b"kernels")
    folder = owner.path
    del owner, first
    gc.collect()
    assert new.read_plan() == b"a plan"
    del new
    gc.collect()
    assert not folder.exists()


def test_loading_to_run_reads_the_plan_once(tmp_path: Path) -> None:
    """The first plan and cache are the very bytes that load checked; afterwards the files are read, and checked."""
    path = fresh_engine(tmp_path / "fresh").save(tmp_path / "model.t2e")
    loaded = load_artifact(path, to_run=True)
    assert isinstance(loaded, EngineArtifact)
    for name in ("model.plan", "runtime.cache"):
        (path / name).write_bytes(b"nonsense")
    assert loaded.plan_buffer() == b"a plan of an ONNX model"
    assert loaded.read_runtime_cache() == b"kernels of an ONNX model"
    for read in (loaded.plan_buffer, loaded.read_runtime_cache):
        with pytest.raises(ArtifactError, match="its manifest says"):
            read()


RTX = replace(HARDWARE, flavour="tensorrt_rtx", flavour_version="1.6.1")


@pytest.mark.parametrize(
    ("built", "current"),
    [
        (HARDWARE, HARDWARE),
        (HARDWARE, replace(HARDWARE, gpu="NVIDIA H100", driver="575.1", flavour_version="10.16.1")),
        (HARDWARE, replace(HARDWARE, gpu=None, compute_capability=None, driver=None)),
        (RTX, replace(RTX, compute_capability=(12, 0))),
        (replace(RTX, gpu=None, compute_capability=None), RTX),
        (replace(RTX, compute_capabilities=((8, 6), (9, 0))), replace(RTX, compute_capability=(8, 6))),
    ],
)
def test_hardware_that_fits_passes(tmp_path: Path, built: Hardware, current: Hardware) -> None:
    """The driver, the GPU's name, the fourth number and an unknown compute capability are no reasons to refuse."""
    fresh_engine(tmp_path, hardware=built).check_hardware(current)


VERSION = "since a plan runs in its own version only"


@pytest.mark.parametrize(
    ("built", "current", "text"),
    [
        (
            HARDWARE,
            RTX,
            f"got a plan of tensorrt 10.16.1.11; expected one of tensorrt_rtx 1.6.1, {VERSION}",
        ),
        (
            HARDWARE,
            replace(HARDWARE, flavour_version="10.16.2.11"),
            f"got a plan of tensorrt 10.16.1.11; expected one of tensorrt 10.16.2.11, {VERSION}",
        ),
        (
            RTX,
            replace(RTX, flavour_version="1.7.1"),
            f"got a plan of tensorrt_rtx 1.6.1; expected one of tensorrt_rtx 1.7.1, {VERSION}",
        ),
        (
            HARDWARE,
            replace(HARDWARE, gpu="NVIDIA L4", compute_capability=(8, 9)),
            "got a plan for compute capability 9.0; expected one for 8.9, that of this GPU (NVIDIA L4)",
        ),
        (
            replace(RTX, compute_capabilities=((8, 6), (8, 9))),
            replace(RTX, gpu=None),
            "got a plan for compute capability 8.6 or 8.9; expected one for 9.0, that of this GPU",
        ),
    ],
)
def test_hardware_that_does_not_fit_is_refused(tmp_path: Path, built: Hardware, current: Hardware, text: str) -> None:
    """Another flavour, version or compute capability is named on both sides, with the line that rebuilds."""
    engine = fresh_engine(tmp_path, hardware=built)
    with pytest.raises(ArtifactError) as error:
        engine.check_hardware(current)
    assert message(error, tmp_path) == (
        f"artifact 'DIR/engine': {text}; rebuild it here: t2e.build('DIR/engine/model.onnx', ...)"
    )


def test_hardware_error_without_onnx_says_to_deploy_again(tmp_path: Path) -> None:
    """An engine whose ONNX was not kept can't be rebuilt from it."""
    engine = pickle.loads(pickle.dumps(fresh_engine(tmp_path)))
    with pytest.raises(ArtifactError) as error:
        engine.check_hardware(RTX)
    assert error.value.subject == "artifact 'in memory'"
    assert error.value.fix == "deploy the model again on this machine"
