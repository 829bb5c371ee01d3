"""Two real plans of one model in a folder: which of them load() opens, and what it does where neither runs.

No machine of these tests has a GPU. So a GPU is planted where the driver lists them, and a device where load() opens an
engine: there ONNX Runtime answers in the engine's place.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import torch2engine as t2e
from tests.support import deploy_models
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.serving.array_runner import find_artifact, open_runner
from torch2engine.trt.gpu import Gpu
from torch2engine.trt.local_hardware import choose_engine, local_hardware

A10 = Gpu(0, "NVIDIA A10", (8, 6), "580.1", 1)
T4 = Gpu(1, "NVIDIA T4", (7, 5), "580.1", 1)
V100 = Gpu(0, "NVIDIA V100", (7, 0), "580.1", 1)
X = torch.ones(3, 6)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two plans that TensorRT-RTX has built from one exported model."""
    ampere = deploy_models.engine_for((8, 6))
    turing = deploy_models.engine_for((7, 5))
    folder = tmp_path_factory.mktemp("bundle")
    return t2e.bundle(folder / "model.t2e", [turing, ampere.save(folder / "ampere.t2e")])


def plant(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> list[t2e.EngineArtifact]:
    """Plant GPUs; the list of the engines that load() will open there."""
    opened: list[t2e.EngineArtifact] = []

    def open_engine(artifact: t2e.EngineArtifact, *_: object) -> t2e.ORTModule:
        opened.append(artifact)
        return t2e.ORTModule(artifact.exported())

    monkeypatch.setattr(
        importlib.import_module("torch2engine.deploy_steps.public_functions.load"), "module_of_artifact", open_engine
    )
    monkeypatch.setattr("torch2engine.trt.local_hardware.list_gpus", lambda: gpus)
    return opened


def test_plan_for_the_gpu_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current GPU's, or that of the device; it is the plan that was built for it, byte for byte."""
    opened = plant(monkeypatch, A10, T4)
    t2e.load(path)
    t2e.load(path, "cuda:1")
    assert [engine.plan_sha256 for engine in opened] == [
        deploy_models.engine_for((8, 6)).plan_sha256,
        deploy_models.engine_for((7, 5)).plan_sha256,
    ]


def test_workers_take_the_plan_for_their_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was given the folder, or the whole bundle, opens the plan for the first GPU that it sees."""
    plant(monkeypatch, T4, A10)
    opened: list[t2e.EngineArtifact] = []
    monkeypatch.setattr("torch2engine.serving.array_runner.Processor", lambda artifact, **_: opened.append(artifact))
    open_runner(find_artifact(path))
    open_runner(BundleArtifact.load(path))
    assert [engine.hardware.compute_capabilities for engine in opened] == [((7, 5),), ((7, 5),)]
    assert choose_engine(BundleArtifact.load(path), 1).hardware.compute_capabilities == ((8, 6),)


def test_gpu_without_a_plan_is_refused_or_gets_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message lists what there is; the way that it names builds a plan, which joins the others."""
    opened = plant(monkeypatch, V100)
    version = local_hardware(["tensorrt_rtx"])[0].flavour_version
    with pytest.raises(t2e.ArtifactError) as caught:
        t2e.load(path)
    assert caught.value.got == (
        f"plans of tensorrt_rtx {version} for compute capability 7.5, tensorrt_rtx {version} for compute capability 8.6"
    )
    assert caught.value.allowed == f"one of tensorrt_rtx {version} for NVIDIA V100"
    with pytest.warns(UserWarning, match="anew for this machine: got plans of tensorrt_rtx"):
        module = t2e.load(path, on_mismatch="rebuild", cache=tmp_path / "cache")
    torch.testing.assert_close(module(X), deploy_models.seeded(deploy_models.Mlp)(X))
    grown = t2e.bundle(tmp_path / "grown.t2e", [path, opened[-1]])
    assert len(BundleArtifact.load(grown).plans) == 3


def test_machine_without_a_gpu_hears_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a plain engine; and ONNX Runtime answers where it may."""
    deploy_models.hide_gpu(monkeypatch)
    for opening in (t2e.load, t2e.Processor, lambda path: open_runner(find_artifact(path))):
        with pytest.raises(t2e.InstallationError):
            opening(path)
    with pytest.warns(UserWarning, match="ONNX Runtime on the CPU"):
        modules = [t2e.load(path, runtime="auto"), t2e.load(path, runtime="onnxruntime")]
    for module in modules:
        torch.testing.assert_close(module(X), deploy_models.seeded(deploy_models.Mlp)(X))
