"""`torch2engine.deploy_steps.public_functions.export`: the public step, and all steps composed by hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import Mlp, mlp, nested_inputs, sample, seeded
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import DynamicAxisError, InputError
from torch2engine.core.spec import Axis, Profile


def test_stages_compose_by_hand(model: Mlp, exported: OnnxArtifact, tmp_path: Path) -> None:
    """export, check, build, save and load, each on its own, are the road without deploy."""
    report = t2e.check(model, exported, sample(4, 6))
    report.raise_if_failed()
    assert [row.case for row in report.rows] == ["min", "opt", "max", "random"]
    built = t2e.build(exported, config=BuildConfig(flavour="tensorrt_rtx"))
    assert isinstance(built, EngineArtifact)
    assert built.signature == exported.signature
    assert built.profiles == exported.profiles == (Profile({"batch": (1, 4, 8)}),)
    loaded = EngineArtifact.load(built.save(tmp_path / "model.t2e"))
    assert loaded.read_plan() == built.read_plan()
    assert loaded.signature == built.signature
    assert loaded.hardware == built.hardware
    assert loaded.onnx_path is not None
    assert loaded.onnx_path.read_bytes() == exported.onnx_path.read_bytes()


def test_exported_artifact_is_saved_checked_and_built_later(model: Mlp, exported: OnnxArtifact, tmp_path: Path) -> None:
    """Days may lie between the stages: what was saved is checked against the live model and built like the original."""
    loaded = OnnxArtifact.load(exported.save(tmp_path / "model.t2e"))
    assert t2e.check(model, loaded, sample(4, 6)).passed
    # Not byte by byte: the builder's plans differ by a few bytes from build to build now and then.
    now, then = (t2e.build(artifact, config=BuildConfig(flavour="tensorrt_rtx")) for artifact in (exported, loaded))
    assert (now.signature, now.profiles, now.precision) == (then.signature, then.profiles, then.precision)
    assert len(then.read_plan()) == pytest.approx(len(now.read_plan()), rel=0.01)


def test_build_of_an_exported_nested_model_keeps_its_structure() -> None:
    """Structures, names and constants go through the builder untouched."""
    reference = seeded(deploy_models.Nested)
    onnx_artifact = t2e.export(reference, nested_inputs(4))
    built = t2e.build(onnx_artifact, config=BuildConfig(flavour="tensorrt_rtx"))
    assert built.signature.to_json() == onnx_artifact.signature.to_json()


def test_export_leaves_the_model_in_training(model: Mlp, exported: OnnxArtifact) -> None:
    """export and check look at a model in inference mode and leave it as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    t2e.check(model, t2e.export(model, sample(4, 6)), sample(4, 6))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_export_takes_profiles_like_deploy(model: Mlp) -> None:
    """Axes named alone take their ranges from the profiles."""
    profiles = [{"batch": (1, 1, 2)}, Profile({"batch": (4, 8, 16)})]
    artifact = t2e.export(model, sample(4, 6), {"x": {0: "batch"}}, profiles=profiles)
    assert artifact.profiles == (Profile({"batch": (1, 1, 2)}), Profile({"batch": (4, 8, 16)}))
    assert artifact.signature.axes == (Axis("batch", 1, 1, 16),)
    assert [row.shape for row in t2e.check(model, artifact, sample(4, 6)).rows] == [
        (1, 3),
        (2, 3),
        (2, 3),
        (4, 3),
        (8, 3),
        (16, 3),
        (10, 3),
    ]


def test_export_refuses_like_deploy(model: Mlp) -> None:
    """The errors are those of deploy."""
    with pytest.raises(DynamicAxisError) as caught:
        t2e.export(model, sample(4, 6), {"y": {0: "batch"}})
    assert str(caught.value) == (
        "dynamic_axes['y']: got no such tensor; expected an input (x) or an output (output); use one of these names"
    )
    with pytest.raises(InputError) as refused:
        t2e.export(mlp()[1], sample(4, 6))
    assert str(refused.value) == "model: got an ORTModule; expected a PyTorch module; pass what it was deployed from"


def test_deploy_and_the_public_steps_are_one_road() -> None:
    """deploy calls the very functions that the public steps are made of."""
    names = (
        "deploy_steps.capture_model_call",
        "deploy_steps.public_functions.export",
        "deploy_steps.public_functions.check",
    )
    deploy, capture, export, check = (importlib.import_module(f"torch2engine.{name}") for name in ("deploy", *names))
    assert capture.capture_call is export.capture_call is check.capture_call
    assert deploy.export_onnx is export.export_onnx
    assert deploy.answer_parity_cases is export.answer_parity_cases is check.answer_parity_cases
    assert deploy.ORTModule is export.ORTModule is check.ORTModule
    assert deploy.load_or_build is t2e.build.__globals__["load_or_build"]
