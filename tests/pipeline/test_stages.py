"""The public stages: export, check and build composed by hand, and what deploy settles before and after."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import BATCH, Baked, Mlp, mlp, nested_inputs, sample, seeded
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import BuildConfig, Tolerance
from torch2engine.core.errors import DynamicAxisError, InputError, InstallationError, ParityError, ShapeError
from torch2engine.core.spec import Axis, Profile
from torch2engine.parity.report import ParityReport
from torch2engine.pipeline.stages import choose_runtime, judge
from torch2engine.trt.gpu import CUDA_LIBRARIES, Gpu

ROOM: Any = importlib.import_module("torch2engine.pipeline.stages")


@pytest.fixture(scope="module")
def model() -> Mlp:
    """The reference, in training as users have it."""
    return seeded(Mlp).train()


@pytest.fixture(scope="module")
def exported(model: Mlp) -> OnnxArtifact:
    """Its ONNX artifact."""
    return t2e.export(model, sample(4, 6), BATCH)


# By hand


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
        "dynamic_axes['y']: no such tensor, inputs are x; outputs are output; use one of these names"
    )
    with pytest.raises(InputError) as refused:
        t2e.export(mlp()[1], sample(4, 6))
    assert str(refused.value) == "model: a ORTModule; it is deployed already; pass the PyTorch module"


# check


def test_check_finds_weights_that_moved_on(exported: OnnxArtifact) -> None:
    """After training the artifact is no longer the model, and the report says so."""
    moved = seeded(Mlp)
    with torch.no_grad():
        moved.second.bias.add_(0.1)
    report = t2e.check(moved, exported, sample(4, 6))
    assert [row.case for row in report.failures] == ["min", "opt", "max", "random"]
    with pytest.raises(ParityError) as caught:
        report.raise_if_failed()
    assert caught.value.report is report


def test_check_finds_a_baked_branch() -> None:
    """The artifact is looked at over the whole of its profiles, not at the sample alone."""
    artifact = t2e.export(Baked(), sample(4, 6), BATCH)
    assert [row.case for row in t2e.check(Baked(), artifact, sample(4, 6)).failures] == ["min"]


def test_check_takes_a_tolerance(model: Mlp, exported: OnnxArtifact) -> None:
    """The tolerance given is the one that judges."""
    tolerance = Tolerance(rel_l2=0, max_rel=0, abs=0)
    report = t2e.check(model, exported, sample(4, 6), tolerance=tolerance)
    assert report.tolerance == tolerance
    assert not report.passed


def test_check_of_another_model_fails(exported: OnnxArtifact) -> None:
    """A model that answers in other shapes is no match, and no crash."""
    report = t2e.check(Baked(), exported, sample(4, 6))
    assert {row.reason for row in report.failures if row.case == "max"} == {
        "shape is [8, 3], the reference's is [8, 6]"
    }
    assert len(report.failures) == len(report.rows) == 4


def test_check_refuses_a_sample_of_another_form(model: Mlp, exported: OnnxArtifact) -> None:
    """Names, dtypes, rank and static sizes must be the artifact's."""
    refusals: list[tuple[type[InputError], nn.Module, Any, str]] = [
        (
            InputError,
            seeded(Mlp).double(),
            sample(4, 6).double(),
            "sample_input: inputs [('x', 'float64')], the artifact's are [('x', 'float32')]",
        ),
        (
            InputError,
            deploy_models.Pair(),
            (sample(4, 6), sample(4, 6)),
            "sample_input: inputs [('a', 'float32'), ('b', 'float32')], the artifact's are [('x', 'float32')]",
        ),
        (ShapeError, model, sample(6), "input 'x': shape [6] has 1 dimensions, the engine takes [batch, 6]"),
        (ShapeError, Baked(), sample(4, 7), "input 'x': dimension 1 is 7, the engine takes [batch, 6]"),
    ]
    for kind, reference, given, text in refusals:
        with pytest.raises(kind) as caught:
            t2e.check(reference, exported, given)
        assert str(caught.value).startswith(text)


def test_check_reads_the_file_and_not_the_model(model: Mlp, tmp_path: Path) -> None:
    """A weight that was changed in the file is found."""
    artifact = t2e.export(model, sample(4, 6))
    graph = onnx.load(artifact.onnx_path)
    weight = next(w for w in graph.graph.initializer if list(w.dims) == [3])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(graph, artifact.onnx_path)
    assert not t2e.check(model, artifact, sample(4, 6)).passed


# judge


def test_judge_compares_case_by_case() -> None:
    """A wrong answer in one case fails that case alone."""
    reference, module = mlp()
    good, bad = sample(2, 6), sample(3, 6)
    examples = [
        ParityCase("good", (good,), {"output": reference(good).detach()}),
        ParityCase("bad", (bad,), {"output": reference(bad).detach() + 1}),
    ]
    report = judge(module, examples, notes=["a note"])
    assert [(row.case, row.passed) for row in report.rows] == [("good", True), ("bad", False)]
    assert (report.subject, report.notes) == ("PyTorch vs ONNX Runtime", ("a note",))
    assert report.tolerance == Tolerance.default("fp32")


def test_judge_keeps_the_examples() -> None:
    """ONNX Runtime and the engine are judged on the same tensors, so no candidate may reach them."""
    reference, module = mlp()
    x = sample(3, 6)
    case = ParityCase("one", (x,), {"output": reference(x).detach()})

    class Vandal(type(module)):
        def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
            answer = super().infer(leaves)
            leaves[0].zero_()
            return answer

    assert judge(Vandal(module._artifact), [case]).passed
    assert torch.equal(x, sample(3, 6))


def test_judge_without_cases_has_not_passed() -> None:
    """Nothing compared is nothing proved."""
    report = judge(mlp()[1], [])
    assert report == ParityReport((), "PyTorch vs ONNX Runtime", Tolerance.default("fp32"))
    with pytest.raises(ParityError):
        report.raise_if_failed()


# What deploy settles


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    deploy_models.hide_gpu(monkeypatch)


def test_runtime_onnxruntime_asks_nobody() -> None:
    """ONNX Runtime needs neither TensorRT nor a GPU."""
    assert choose_runtime("onnxruntime", BuildConfig(flavour="tensorrt")) == "onnxruntime"


@pytest.mark.usefixtures("no_gpu")
def test_runtime_tensorrt_needs_a_gpu() -> None:
    """Without a driver the error says what to install."""
    with pytest.raises(InstallationError) as caught:
        choose_runtime("tensorrt", BuildConfig())
    assert str(caught.value).startswith(
        f"NVIDIA driver: {CUDA_LIBRARIES[0]} can't be loaded; install the driver until "
    )


def _pretend_gpu(monkeypatch: pytest.MonkeyPatch, has_cuda: bool) -> None:
    gpu = Gpu(0, "NVIDIA H200", (9, 0), "580.159.03", 1)
    monkeypatch.setattr("torch2engine.trt.gpu._probe", lambda: (gpu,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)


def test_runtime_tensorrt_needs_a_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is no use to a CPU build of PyTorch; the text says which build it is."""
    _pretend_gpu(monkeypatch, has_cuda=False)
    with pytest.raises(InstallationError) as caught:
        choose_runtime("tensorrt", BuildConfig())
    assert str(caught.value) == (
        f"PyTorch: torch {torch.__version__} sees no CUDA device, TRTModule works on CUDA tensors; "
        "install a CUDA build of torch on a machine with a GPU, or deploy with runtime='onnxruntime'"
    )


@pytest.mark.parametrize("runtime", ["tensorrt", "auto"])
def test_runtime_is_tensorrt_where_all_is_there(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT, a driver, a GPU and CUDA in PyTorch, "auto" is TensorRT, without a warning."""
    _pretend_gpu(monkeypatch, has_cuda=True)
    assert choose_runtime(runtime, BuildConfig()) == "tensorrt"


@pytest.mark.usefixtures("no_gpu")
def test_runtime_auto_warns_and_falls_back() -> None:
    """ "auto" without a GPU is ONNX Runtime, with the reason in one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose_runtime("auto", BuildConfig()) == "onnxruntime"
    assert [str(warning.message).split(":")[:2] for warning in caught] == [
        ["deploying to ONNX Runtime on the CPU, because TensorRT can't run", " NVIDIA driver"]
    ]


def test_unknown_runtime_is_refused() -> None:
    """The words that there are stand in the text."""
    with pytest.raises(InputError) as caught:
        choose_runtime("onnx", BuildConfig())
    assert str(caught.value) == "runtime: 'onnx', one of 'tensorrt', 'onnxruntime', 'auto'"


def test_deploy_and_the_stages_are_one_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy calls the very functions that the public stages are made of."""
    deploy_room: Any = importlib.import_module("torch2engine.deploy")
    names = ("capture_call", "export_onnx", "make_parity_cases", "ORTModule", "judge")
    same: Callable[[str], bool] = lambda name: getattr(deploy_room, name) is getattr(ROOM, name)  # noqa: E731
    assert all(map(same, names))
    assert deploy_room.request_engine is t2e.build.__globals__["request_engine"]
