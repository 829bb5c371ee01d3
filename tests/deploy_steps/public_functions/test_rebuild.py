"""`load(on_mismatch="rebuild")`: an engine that does not run here is built anew from its ONNX files.

No machine of these tests has a GPU. So a device is planted where load() opens an engine: it refuses what
`check_hardware` refuses there, and ONNX Runtime answers in the engine's place. The build is TensorRT-RTX's own.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.support import deploy_models
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.builder import load_or_build
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import Gpu

H200 = Gpu(0, "NVIDIA H200", (9, 0), "580.1", 1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[t2e.EngineArtifact]:
    """The engines that load() has opened on the planted device."""
    rt = find_tensorrt("tensorrt_rtx")
    here = Hardware(
        flavour=rt.name, flavour_version=rt.version, gpu=H200.name, compute_capability=H200.compute_capability
    )
    engines: list[t2e.EngineArtifact] = []

    def open_engine(artifact: t2e.EngineArtifact, *_: object) -> t2e.ORTModule:
        artifact.check_hardware(here)
        engines.append(artifact)
        return t2e.ORTModule(artifact.exported())

    room = importlib.import_module("torch2engine.deploy_steps.public_functions.load")
    monkeypatch.setattr(room, "module_of_artifact", open_engine)
    monkeypatch.setattr(room, "list_gpus", lambda: (H200,))
    return engines


def saved_engine(folder: Path, **changes: Any) -> Path:
    """An engine that says that it was built elsewhere."""
    engine = deploy_models.engine()
    return engine.replace(hardware=dataclasses.replace(engine.hardware, **changes)).save(folder / "model.t2e")


@pytest.mark.parametrize(
    ("built", "why"),
    [
        ({"flavour_version": "1.0.0.1"}, "got a plan of tensorrt_rtx 1.0.0.1"),
        ({"compute_capabilities": ((8, 6),)}, "got a plan for compute capability 8.6"),
        ({"flavour": "tensorrt", "flavour_version": "10.16.1.11"}, "tensorrt is not installed"),
    ],
)
def test_engine_of_other_hardware_is_built_anew_once(
    tmp_path: Path,
    opened: list[t2e.EngineArtifact],
    monkeypatch: pytest.MonkeyPatch,
    built: dict[str, Any],
    why: str,
) -> None:
    """By the installed TensorRT, for the same profiles, with one warning; the second time the cache has it."""
    path = saved_engine(tmp_path, **built)
    phases: set[str] = set()
    with pytest.warns(UserWarning, match="anew") as warned:
        module = t2e.load(
            path, on_mismatch="rebuild", cache=tmp_path / "cache", progress=lambda phase, *_: phases.add(phase)
        )
    assert [str(warning.message) for warning in warned] == [
        f"building the engine of '{path}' anew for this machine: {why}"
    ]
    assert "Building engine" in phases
    (engine,) = opened
    assert (engine.profiles, engine.signature) == (deploy_models.engine().profiles, deploy_models.engine().signature)
    assert engine.hardware.flavour == "tensorrt_rtx"
    assert module.report.verdict == "not compared"
    torch.testing.assert_close(module(torch.ones(3, 6)), deploy_models.seeded(deploy_models.Mlp)(torch.ones(3, 6)))
    monkeypatch.setattr(load_or_build, "compile_in_child", None)
    with pytest.warns(UserWarning, match="anew"):
        t2e.load(path, on_mismatch="rebuild", cache=tmp_path / "cache")
    assert opened[1].plan_sha256 == engine.plan_sha256


def test_engine_of_other_hardware_is_refused_by_default(tmp_path: Path, opened: list[t2e.EngineArtifact]) -> None:
    """The error names both ways out; without its ONNX files an engine can't be built anew, and neither is named."""
    path = saved_engine(tmp_path, flavour_version="1.0.0.1")
    with pytest.raises(t2e.ArtifactError) as caught:
        t2e.load(path)
    fix = f"load it with on_mismatch='rebuild'; or rebuild it here: t2e.build('{path / 'model.onnx'}', ...)"
    assert (caught.value.fix, caught.value.path) == (fix, str(path))
    bare = t2e.EngineArtifact.load(path).without_onnx().save(tmp_path / "bare.t2e")
    with pytest.raises(t2e.ArtifactError) as caught:
        t2e.load(bare, on_mismatch="rebuild")
    assert caught.value.fix == "deploy the model again on this machine"
    assert opened == []


def test_engine_that_fits_is_not_built_anew(tmp_path: Path, opened: list[t2e.EngineArtifact]) -> None:
    """The saved plan runs, with no warning."""
    t2e.load(saved_engine(tmp_path), on_mismatch="rebuild")
    assert [engine.plan_sha256 for engine in opened] == [deploy_models.engine().plan_sha256]


def test_unknown_word_for_a_mismatch_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.load(tmp_path / "none", on_mismatch="rebuilt")  # type: ignore[call-overload]  # the wrong word is the case
    assert str(caught.value).startswith("on_mismatch: got 'rebuilt'; expected one of 'error', 'rebuild'; ")
