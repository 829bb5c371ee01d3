"""Verified bytes are the executed bytes: a save by another process in between changes nothing and poisons nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import torch2engine as t2e
from tests.support.sample_artifacts import PROFILES, SIGNATURE, fresh_engine, fresh_onnx, onnx_bytes
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.onnx_fingerprint import engine_fingerprint
from torch2engine.core.errors import ArtifactError

X = torch.ones(2, 3)


def scaling(factor: float) -> torch.nn.Module:
    """A model that multiplies: which version answered shows in the answer."""
    linear = torch.nn.Linear(3, 3, bias=False)
    torch.nn.init.constant_(linear.weight, factor)
    return linear.eval()


@pytest.fixture(scope="module")
def versions() -> tuple[OnnxArtifact, OnnxArtifact]:
    """Two versions of one model, which differ in their weights alone."""
    return t2e.export(scaling(1.0), X), t2e.export(scaling(2.0), X)


def first_call(module: t2e.ORTModule) -> t2e.ORTModule:
    return module


def call_after_trim(module: t2e.ORTModule) -> t2e.ORTModule:
    module(X)
    module.trim()
    return module


@pytest.mark.parametrize("use", [first_call, call_after_trim, copy.deepcopy], ids=lambda use: use.__name__)
def test_session_runs_what_was_loaded_when_another_process_saves(
    use: Callable[[t2e.ORTModule], t2e.ORTModule], versions: tuple[OnnxArtifact, OnnxArtifact], tmp_path: Path
) -> None:
    """The module answers as the version that was loaded, whenever its session is opened."""
    old, new = versions
    path = old.save(tmp_path / "model.t2e")
    module = t2e.load(path)
    assert isinstance(module, t2e.ORTModule)
    new.save(path)
    assert torch.equal(use(module)(X), torch.full((2, 3), 3.0))


def test_build_and_cache_key_are_of_what_was_loaded(
    versions: tuple[OnnxArtifact, OnnxArtifact], tmp_path: Path
) -> None:
    """The key of a loaded model is that of the model which its engine is built from, before and after a save."""
    old, new = versions
    path = old.save(tmp_path / "model.t2e")
    loaded = OnnxArtifact.load(path)
    new.save(path)
    assert engine_fingerprint(loaded) == engine_fingerprint(old) != engine_fingerprint(new)
    engine = t2e.build(loaded)
    assert engine.read("model.onnx") == old.read("model.onnx") != new.read("model.onnx")
    assert loaded.checked_onnx_path.read_bytes() == old.read("model.onnx")


def test_files_stay_readable_when_another_process_saves(tmp_path: Path) -> None:
    """Whatever reads or copies a file takes the one that was checked."""
    path = fresh_onnx(tmp_path / "one", "old").save(tmp_path / "model.t2e")
    loaded = OnnxArtifact.load(path)
    fresh_onnx(tmp_path / "two", "new").save(path)
    assert loaded.read("model.onnx") == onnx_bytes("old")
    assert loaded.checked_onnx_path.read_bytes() == onnx_bytes("old")
    assert OnnxArtifact.load(loaded.save(tmp_path / "copy.t2e")).read("model.onnx") == onnx_bytes("old")


def test_file_that_is_written_to_after_loading_is_refused_by_name(tmp_path: Path) -> None:
    """A write into the very file that was checked is seen before its bytes are used."""
    path = fresh_onnx(tmp_path / "fresh", "old").save(tmp_path / "model.t2e")
    loaded = OnnxArtifact.load(path)
    with (path / "model.onnx").open("r+b") as file:
        file.write(b"new")
    for use in (lambda: loaded.checked_onnx_path, lambda: loaded.read("model.onnx")):
        with pytest.raises(ArtifactError, match=r"other bytes in 'model.onnx' than were saved.*load it again"):
            use()


def test_engine_runs_the_plan_that_was_loaded(tmp_path: Path) -> None:
    """So does an engine: its plan and kernels are those of the version that was loaded."""
    path = fresh_engine(tmp_path / "a", "one", plan=b"old").save(tmp_path / "model.t2e")
    loaded = EngineArtifact.load(path)
    fresh_engine(tmp_path / "b", "two").save(path)
    assert loaded.read_plan() == b"old" + b" of one"
    assert loaded.read_runtime_cache() == b"kernels of one"
    assert loaded.without_onnx().read_plan() == loaded.read_plan()


def test_artifact_of_a_users_folder_is_copied_before_it_is_used_by_path(tmp_path: Path) -> None:
    """What a user changes in a folder after the first use reaches neither a build nor its cache key."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])
    weight = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out], [weight]))
    onnx.save_model(
        model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    artifact = OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=PROFILES, precision="fp32")
    before = engine_fingerprint(artifact)
    data = artifact.checked_onnx_path.with_name("model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(bytes(len(data)))
    assert engine_fingerprint(artifact) == before
    assert artifact.checked_onnx_path.with_name("model.onnx.data").read_bytes() == data
