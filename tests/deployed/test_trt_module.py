"""TRTModule where there is no GPU: what a TRTModule refuses, carries and says before it is bound to one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models, onnx_models
from tests.support.deploy_models import engine, mlp, sample
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.errors import (
    ArtifactError,
    DeviceError,
    DtypeError,
    InputError,
    InstallationError,
    Torch2EngineError,
)
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.trt.bindings import find_tensorrt

NO_CUDA = (
    f"PyTorch: got torch {torch.__version__}, which sees no CUDA device; expected a CUDA device, "
    "since TRTModule works on CUDA tensors; install a CUDA build of torch on a machine with a GPU"
)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    deploy_models.hide_gpu(monkeypatch)


@pytest.fixture
def module() -> TRTModule:
    """A module that no call has bound yet."""
    return TRTModule(engine())


def refusal(kind: type[Torch2EngineError], call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def test_module_tells_what_it_is_before_it_is_bound(module: TRTModule) -> None:
    """Signature, precision, runtime and device need no GPU."""
    assert module.runtime == find_tensorrt("tensorrt_rtx").title
    assert module.precision == engine().precision
    assert (module.device, module.memory_bytes, module.report.verdict, module.training) == (
        None,
        0,
        "not compared",
        False,
    )
    call = "x: float32[batch, 6] -> output: float32[batch, 3]; batch 1..8 (opt 4)"
    text = f"TRTModule({call}; {module.precision}, device=None)"
    assert repr(module) == text


def test_cpu_input_is_refused_with_the_cure(module: TRTModule) -> None:
    """An engine doesn't copy to the GPU behind anybody's back."""
    for x in (sample(4, 6), torch.empty(4, 6, device="meta")):
        assert refusal(DeviceError, module, x) == (
            f"input 'x': got device {x.device}; expected a CUDA device, where the module runs; move it with .to('cuda')"
        )


def test_cpu_input_is_refused_by_a_module_with_a_device() -> None:
    """A module that is meant for one GPU names it; "cuda" alone is any GPU."""
    module = TRTModule(engine(), device=torch.device("cuda:1"))
    assert module.device == torch.device("cuda:1")
    text = "input 'x': got device cpu; expected cuda:1, where the module runs; move it with .to('cuda:1')"
    assert refusal(DeviceError, module, sample(4, 6)) == text
    assert TRTModule(engine(), device=torch.device("cuda")).device is None


def test_device_that_is_no_gpu_is_refused(module: TRTModule) -> None:
    """An engine is not given a device that it can't run on."""
    for call in (lambda: TRTModule(engine(), device="cpu"), lambda: module.bind("cpu")):
        assert refusal(DeviceError, call).startswith("TRTModule: ")


def test_call_is_checked_before_a_gpu_is_needed(module: TRTModule) -> None:
    """Arguments, dtypes, layouts and grad are refused in the words of every deployed module."""
    assert refusal(InputError, module).startswith("argument 'x': got no value")
    assert refusal(DtypeError, module, sample(4, 6).double()).startswith("input 'x': got dtype float64")
    assert refusal(InputError, module, sample(4, 6).requires_grad_()).startswith(
        "input 'x': got a tensor that requires grad"
    )
    assert refusal(InputError, module, sample(4, 6).to_sparse()).startswith("input 'x': got layout sparse_coo")


def test_bind_without_a_gpu_is_an_installation_error(module: TRTModule) -> None:
    """The text names the torch that was found and both ways out."""
    assert refusal(InstallationError, module.bind) == NO_CUDA
    assert refusal(InstallationError, module.bind, torch.device("cuda:0")) == NO_CUDA
    assert module.device is None


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0", torch.device("cuda", 1)])
def test_load_without_a_gpu_is_an_installation_error(device: Any, tmp_path: Path) -> None:
    """The missing GPU is named, whatever device was wished for, and what runs without one if it is there."""
    path = engine().save(tmp_path / "model.t2e")
    assert refusal(InstallationError, t2e.load, path, device) == (
        f"{NO_CUDA}; or load it with runtime='onnxruntime', which runs its model.onnx on the CPU"
    )
    bare = engine().without_onnx().save(tmp_path / "bare.t2e")
    assert refusal(InstallationError, t2e.load, bare, device) == NO_CUDA


def test_saved_engine_answers_from_its_exported_model_on_the_cpu(tmp_path: Path) -> None:
    """runtime="onnxruntime" runs the model.onnx beside a plan; the module is an exported model, and saves as one."""
    loaded = t2e.load(engine().save(tmp_path / "model.t2e"), runtime="onnxruntime")
    x = torch.rand(3, 6)
    torch.testing.assert_close(loaded(x), deploy_models.seeded(deploy_models.Mlp)(x).detach())
    exported = loaded.save(tmp_path / "exported.t2e")
    assert sorted(file.name for file in exported.iterdir()) == ["manifest.json", "model.onnx"]
    assert refusal(InputError, t2e.load, exported, runtime="tensorrt") == (
        "runtime: got 'tensorrt' for an exported model; expected 'onnxruntime', 'auto' or None, since there is no "
        f"engine in it; build one with torch2engine.build(torch2engine.OnnxArtifact.load({str(exported)!r}))"
    )


def test_engine_that_can_not_run_falls_back_to_its_exported_model(tmp_path: Path) -> None:
    """runtime="auto" answers on a machine without a GPU, and says so once; there None stays an error."""
    path = engine().save(tmp_path / "model.t2e")
    with pytest.warns(UserWarning, match=r"running the model\.onnx of '.*model\.t2e' with ONNX Runtime on the CPU: "):
        loaded = t2e.load(path, device="cuda", runtime="auto")
    x = torch.rand(3, 6)
    torch.testing.assert_close(loaded(x), deploy_models.seeded(deploy_models.Mlp)(x).detach())
    with pytest.raises(InstallationError, match="or load it with runtime='onnxruntime'"):
        t2e.load(path)


def test_engine_without_its_exported_model_has_none_to_answer(tmp_path: Path) -> None:
    """A plan alone does not run on the CPU, and the error names the file that is missing."""
    path = engine().without_onnx().save(tmp_path / "model.t2e")
    assert refusal(ArtifactError, t2e.load, path, runtime="onnxruntime") == (
        f"artifact '{path}': got an engine without its model.onnx; expected one with it; save the module that deploy() "
        "gave before any refit, or deploy with runtime='onnxruntime'"
    )


def test_load_of_an_engine_to_the_cpu_is_refused(tmp_path: Path) -> None:
    """There is no engine on a CPU, GPU or not."""
    path = engine().save(tmp_path / "model.t2e")
    for device in ("cpu", "meta"):
        assert refusal(DeviceError, t2e.load, path, device) == (
            f"engine '{path}': got device {device}; expected a CUDA device; leave out device, or load "
            "what deploy(runtime='onnxruntime') saved"
        )


def test_load_of_a_damaged_engine_is_an_artifact_error(tmp_path: Path) -> None:
    """Hashes are checked before anything else, the GPU included."""
    path = engine().save(tmp_path / "model.t2e")
    plan = bytearray((path / "model.plan").read_bytes())
    plan[len(plan) // 2] ^= 1
    (path / "model.plan").write_bytes(plan)
    assert refusal(ArtifactError, t2e.load, path) == (
        f"artifact '{path}': got other bytes in 'model.plan' than were saved; expected bytes whose "
        f"SHA-256 is {engine().manifest()['files']['model.plan']['sha256'][:16]}…; save it again or "
        "restore it from a copy"
    )


def test_move_to_a_gpu_that_is_not_there_is_refused(module: TRTModule) -> None:
    """.cuda() fails in torch2engine's words, in a parent too."""
    for move in (module.cuda, lambda: module.to("cuda:0"), nn.Sequential(module).cuda):
        with pytest.raises((DeviceError, InstallationError)) as caught:
            move()
        assert str(caught.value) == NO_CUDA or str(caught.value).startswith(
            "TRTModule: got a move that PyTorch refuses ("
        )
    assert refusal(DeviceError, module.to, "meta") == (
        "TRTModule: got a move to meta; expected a CUDA device; deploy again with the other runtime for that device"
    )


def test_surface_of_nn_module_is_that_of_every_deployed_module(module: TRTModule) -> None:
    """Casts and surgery are refused; modes and moves to where it is are fine."""
    assert refusal(InputError, module.half) == (
        "TRTModule: got a cast to float16; expected the dtypes that the engine was built with; cast "
        "the model and deploy it again"
    )
    assert refusal(InputError, setattr, module, "w", nn.Parameter(torch.ones(1))) == (
        "TRTModule: got an attempt to set parameter, buffer or submodule 'w'; expected none, since an engine's "
        "weights are inside its plan; "
        "change the model and deploy it again"
    )
    for method in ("eval", "train", "cpu", "requires_grad_"):
        assert getattr(module, method)() is module


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_carry_the_plan_and_no_device(how: Callable[[TRTModule], TRTModule]) -> None:
    """A copy, here or in another process, has the same plan and binds anew."""
    module = TRTModule(engine(), device=torch.device("cuda:1"))
    twin = how(module)
    assert twin is not module
    assert twin._artifact.read_plan() == engine().read_plan()
    assert (twin.device, twin._backend.session) == (None, None)
    assert twin._backend._binding is not module._backend._binding
    assert not twin._backend._binding._own_lock().locked()
    assert twin.signature == module.signature


def test_copies_share_working_memory_and_pickles_do_not() -> None:
    """A copy is called instead of the original or beside it; another process has memory of its own."""
    shared = t2e.SharedMemory()
    module = TRTModule(engine(), runtime_config=t2e.RuntimeConfig(shared_memory=shared))
    assert copy.copy(module).runtime_config.shared_memory is shared
    assert copy.deepcopy(module).runtime_config.shared_memory is shared
    sent: list[TRTModule] = pickle.loads(pickle.dumps([module, copy.copy(module)]))
    assert sent[0].runtime_config.shared_memory is sent[1].runtime_config.shared_memory
    assert isinstance(sent[0].runtime_config.shared_memory, t2e.SharedMemory)
    assert sent[0].runtime_config.shared_memory is not shared


def test_state_dict_carries_the_plan_and_not_the_onnx(module: TRTModule, relu_path: Path) -> None:
    """A state_dict through a file of weights alone gives another module this engine."""
    stream = io.BytesIO()
    torch.save(nn.Sequential(module).state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert set(state["0._extra_state"]["files"]) == {"model.plan"}
    other = TRTModule(t2e.build(relu_path, {"batch": (1, 2, 4)}))
    nn.Sequential(other).load_state_dict(state)
    assert other._artifact.read_plan() == engine().read_plan()
    assert other.signature == module.signature
    assert isinstance(other._artifact, EngineArtifact)


class Weighed(nn.Module):
    """Two inputs and a dict, unlike the engine of these tests."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x * weight, "difference": x - weight}


def test_loaded_state_decides_how_calls_are_bound(module: TRTModule) -> None:
    """After load_state_dict nothing is left of the signature before, in the quick way of binding a call either."""
    inputs = (sample(4, 6), sample(4, 6))
    other = TRTModule(t2e.build(t2e.export(Weighed(), inputs)))
    call = other._backend.direct_call
    assert (call.positional_count, call.names, call.returns_tensor) == (2, ("x", "weight"), False)
    module.load_state_dict(other.state_dict())
    assert module._backend.direct_call == call
    assert module._backend.direct_call.leaves((), {"weight": inputs[1], "x": inputs[0]})[0] is inputs[0]


@pytest.fixture(scope="module")
def relu_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that torch2engine did not write."""
    return onnx_models.relu(tmp_path_factory.mktemp("relu"))


def test_state_of_the_other_kind_is_refused(module: TRTModule) -> None:
    """An engine takes no ONNX model's state, and says what it got."""
    text = refusal(ArtifactError, module.load_state_dict, mlp()[1].state_dict())
    assert text == "artifact 'in memory': got an ONNX model; expected an engine; build it first: t2e.build(...)"
    text = refusal(ArtifactError, copy.deepcopy(mlp()[1]).load_state_dict, module.state_dict())
    assert text == "artifact 'in memory': got an engine; expected an ONNX model"
    assert module._artifact.read_plan() == engine().read_plan()


def test_engine_from_any_onnx_file_becomes_a_module(relu_path: Path) -> None:
    """What came from elsewhere is called by its inputs' names."""
    module = TRTModule(t2e.build(relu_path, {"batch": (1, 2, 4)}))
    assert [parameter.name for parameter in module.signature.parameters] == ["x"]
    assert refusal(DeviceError, module, x=sample(2, 4)).startswith("input 'x': got device cpu")
    assert refusal(InputError, module, y=sample(2, 4)) == (
        "argument 'y': got an unknown name; expected one of x; leave it out"
    )


def test_save_writes_the_engine(module: TRTModule, tmp_path: Path) -> None:
    """The folder is an engine artifact with the ONNX model beside the plan."""
    loaded = EngineArtifact.load(module.save(tmp_path / "model.t2e"))
    assert loaded.read_plan() == engine().read_plan()
    assert set(loaded.files) == {"model.onnx", "model.plan"}
