"""Every error below names a cure, and the cure works: each test follows it and gets an engine's answer."""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.precision import validate

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Net(nn.Module):
    """(batch, 3) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu()


class Sum(nn.Module):
    """Two tensors -> their sum."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class TakesDict(nn.Module):
    """One dict of tensors -> their sum."""

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return batch["x"] + batch["y"]


class TakesList(nn.Module):
    """One list of tensors -> their sum."""

    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return parts[0] + parts[1]


def deploy(model: Any, sample: Any = X, **options: Any) -> Any:
    """Deploy to ONNX Runtime, without a cache."""
    return t2e.deploy(model, sample, runtime="onnxruntime", cache=False, **options)


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> t2e.Torch2EngineError:
    """The error of a call."""
    with pytest.raises(t2e.Torch2EngineError) as caught:
        call(*arguments, **options)
    return caught.value


def is_equal(answer: Any, right: torch.Tensor) -> bool:
    """Whether an answer is right but for rounding."""
    return torch.allclose(answer, right, atol=1e-5)


@pytest.fixture(scope="module")
def net() -> Net:
    """A seeded model."""
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def saved(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported model."""
    path = tmp_path_factory.mktemp("cures") / "net.t2e"
    deploy(net).save(path)
    return path


def test_class_given_as_a_model_is_to_be_called() -> None:
    """The class itself is no module; a call makes one."""
    error = refusal(deploy, Net)
    assert str(error) == "model: got the class Net; expected a torch.nn.Module; make one first, e.g. Net(...)"
    assert deploy(Net())(X).shape == X.shape


def test_state_dict_given_as_a_model_is_to_be_loaded(net: Net) -> None:
    """Weights alone have no forward."""
    error = refusal(deploy, net.state_dict())
    assert str(error) == (
        "model: got an OrderedDict; expected a torch.nn.Module; load this state into a module with "
        "module.load_state_dict(...), and pass the module"
    )
    module = Net()
    module.load_state_dict(net.state_dict())
    assert is_equal(deploy(module)(X), net(X))


def test_path_given_as_a_model_is_told_by_what_lies_there(net: Net, saved: Path, tmp_path: Path) -> None:
    """A saved folder is loaded, weights go into a module, and what tells nothing asks for the module."""
    error = refusal(deploy, str(saved))
    assert error.fix == f"load it with torch2engine.load({str(saved)!r})"
    assert is_equal(t2e.load(str(saved))(X), net(X))
    weights = tmp_path / "net.pt"
    torch.save(net.state_dict(), weights)
    assert "give it these weights with module.load_state_dict(...)" in refusal(deploy, weights).fix
    assert refusal(deploy, "nowhere").fix == "pass the module itself"


@pytest.mark.parametrize("call", [t2e.load, t2e.build])
def test_torch_file_given_to_load_or_build_is_for_deploy(call: Callable[..., Any], net: Net, tmp_path: Path) -> None:
    """A .pt file becomes an engine by way of a module."""
    path = tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    assert refusal(call, path).fix == (
        "make the module in Python, give it these weights with module.load_state_dict(...), and call "
        "torch2engine.deploy(module, sample_input)"
    )
    module = Net()
    module.load_state_dict(torch.load(path))
    assert is_equal(deploy(module.eval(), X)(X), net(X))


def test_onnx_file_given_to_load_is_for_build(saved: Path) -> None:
    """load takes what save wrote; an ONNX file is built."""
    path = saved / "model.onnx"
    assert refusal(t2e.load, path).fix == f"build an engine of it with torch2engine.build({str(path)!r})"
    assert t2e.build(str(path)).precision == "fp32"


def test_saved_folder_given_to_build_is_to_be_loaded(saved: Path) -> None:
    """build takes an artifact or an ONNX file, not the folder."""
    error = refusal(t2e.build, saved)
    assert error.fix == f"if torch2engine saved it, build torch2engine.OnnxArtifact.load({str(saved)!r})"
    assert t2e.build(t2e.OnnxArtifact.load(saved)).precision == "fp32"


def test_device_of_an_exported_model_is_the_cpu(net: Net, saved: Path) -> None:
    """An exported model can't go to a GPU; without device it answers, and build makes an engine of it."""
    error = refusal(t2e.load, saved, device="cuda")
    assert str(error) == (
        f"exported model '{saved}': got device cuda; expected the CPU, where ONNX Runtime runs it; "
        "leave out device, or "
        f"build an engine with torch2engine.build(torch2engine.OnnxArtifact.load({str(saved)!r}))"
    )
    assert isinstance(error, t2e.DeviceError)
    assert is_equal(t2e.load(saved)(X), net(X))
    assert t2e.build(t2e.OnnxArtifact.load(str(saved))).precision == "fp32"


def test_packed_arguments_are_to_be_unpacked() -> None:
    """A list, a tuple or a dict of the arguments is not the arguments."""
    module = deploy(Sum(), (X, X))
    for packed in ([X, X], (X, X)):
        assert refusal(module, packed).fix == "unpack it: module(*inputs)"
        assert is_equal(module(*packed), X + X)
    named = {"x": X, "y": X}
    assert refusal(module, named).fix == "unpack it: module(**inputs)"
    assert is_equal(module(**named), X + X)


def test_sample_of_a_forward_that_takes_one_dict_is_put_into_a_tuple() -> None:
    """A Mapping is read as keywords, so the dict itself needs a tuple around it."""
    sample = {"x": X, "y": X}
    error = refusal(deploy, TakesDict(), sample)
    assert error.got.startswith("the keywords x, y (")
    assert error.fix == "for a forward that takes one dict, pass it in a tuple: (the_dict,)"
    assert is_equal(deploy(TakesDict(), (sample,))(sample), X + X)


def test_sample_of_a_forward_that_takes_one_list_is_put_into_a_tuple() -> None:
    """A list is read as positional arguments, so the list itself needs a tuple around it."""
    error = refusal(deploy, TakesList(), [X, X])
    assert error.got.startswith("2 positional arguments (")
    assert error.fix == "for a forward that takes one list, pass it in a tuple: (the_list,)"
    assert is_equal(deploy(TakesList(), ([X, X],))([X, X]), X + X)


@pytest.mark.parametrize(
    ("given", "word"),
    [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp32"), ("half", "fp16"), ("float32", "fp32")],
)
def test_dtype_given_as_a_precision_gets_its_word(given: object, word: str) -> None:
    """PyTorch's dtypes and their names are understood."""
    assert refusal(t2e.Precision.of, given).fix == f"pass '{word}'"  # type: ignore[attr-defined]
    assert refusal(deploy, Net(), precision=given).fix == f"pass '{word}'"
    assert t2e.Precision(word).dtype == word


def test_misspelt_options_get_the_right_word(net: Net) -> None:
    """What is most like the misspelt word is named, and it is accepted."""
    assert refusal(deploy, net, precision="fp_32").fix == "did you mean 'fp32'?"
    assert refusal(t2e.deploy, net, X, runtime="onnx_runtime").fix == "did you mean 'onnxruntime'?"
    assert refusal(t2e.RuntimeConfig, out_of_range="egaer").fix == "did you mean 'eager'?"
    assert refusal(deploy, net, dynamic_axes={"X": {0: "batch"}}).fix == "did you mean 'x'?"
    axes = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
    assert refusal(deploy, net, dynamic_axes=axes, profiles=[{"bacth": (1, 4, 8)}]).fix == "did you mean 'batch'?"
    module = deploy(net, dynamic_axes=axes, profiles=[{"batch": (1, 4, 8)}])
    assert refusal(module.warmup, [{"btach": 2}]).fix == "did you mean 'batch'?"
    module.warmup([{"batch": 2}])
    assert refusal(t2e.build, t2e.export(net, X, axes), {"batches": (1, 4, 8)}).fix
    two = deploy(Sum(), (X, X))
    assert refusal(two, X, yy=X).fix == "did you mean 'y'?"
    assert is_equal(two(X, y=X), X + X)


def test_bytes_for_a_float_model_are_to_become_floats() -> None:
    """Images as uint8 are scaled by the caller, or by the engine."""
    model = nn.Conv2d(3, 2, 3).eval()
    images = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).reshape(2, 8, 8, 3)
    first = images.permute(0, 3, 1, 2).contiguous()
    assert refusal(deploy, model, first).fix == (
        "pass floats, e.g. sample_input.float() / 255, or bytes with preprocess=torch2engine.Preprocess(...), which "
        "makes the floats in the engine"
    )
    floats = first.float() / 255
    assert is_equal(deploy(model, floats)(floats), model(floats))
    assert is_equal(deploy(model, images, preprocess=t2e.Preprocess())(images), model(floats))


def test_sample_of_another_dtype_gets_the_models_own() -> None:
    """A double sample for a float model is named as the cause."""
    model = nn.Linear(3, 2).eval()
    assert refusal(deploy, model, X.double()).fix == "pass them in the model's own dtype, with .to(torch.float32)"
    assert is_equal(deploy(model, X.double().to(torch.float32))(X), model(X))


def test_calibration_item_with_labels_is_named_and_cured(net: Net) -> None:
    """A DataLoader's [x, y] is told by its number, and the line that leaves the labels out works."""
    loader = [[X, torch.zeros(4)], [X * 2, torch.ones(4)]]
    error = refusal(deploy, net, precision="int8", calibration=loader)
    assert error.subject == "calibration item 0"
    assert error.got == "2 positional arguments for call"
    assert error.fix == "leave the labels out: calibration=(x for x, _ in loader)"
    module = deploy(net, precision="int8", calibration=(x for x, _ in loader))
    assert module.precision == "int8"


class Accumulator(nn.Module):
    """Adds x to a total that the caller holds."""

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return total.add_(x).relu()


def test_model_that_writes_into_its_input_is_cured_both_ways() -> None:
    """With mutations="write_back" the caller's tensor moves on with every call, and export takes the same word."""
    error = refusal(deploy, Accumulator(), (X, X))
    assert error.fix == (
        "pass config=BuildConfig(mutations='write_back') to deploy (to export: mutations='write_back'), and calls copy "
        "the new values into the caller's tensors; or write into a clone in forward, and return what is needed"
    )
    assert error.source.startswith(__file__)
    module = deploy(Accumulator(), (X, X), config=t2e.BuildConfig(mutations="write_back"))
    total = torch.zeros(4, 3)
    for count in (1, 2, 3):
        assert is_equal(module(X, total), (count * X).relu())
        assert is_equal(total, count * X)
    assert t2e.build(t2e.export(Accumulator(), (X, X), mutations="write_back")).precision == "fp32"
    assert refusal(t2e.BuildConfig, mutations="writeback").fix == "did you mean 'write_back'?"


class Untouched(nn.Module):
    """A model that must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called")


@pytest.mark.parametrize("calibration", [[], (), collections.deque()])
def test_empty_calibration_is_refused_before_any_work(calibration: Any) -> None:
    """The model is not even called."""
    error = refusal(deploy, Untouched(), precision="int8", calibration=calibration)
    assert (error.subject, error.got) == ("calibration", "no batch")


def test_missing_modelopt_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not even called; a model that is in half precision itself needs no ModelOpt."""
    found = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return None if name == "modelopt" else found(name)

    monkeypatch.setattr(validate, "find_spec", find_spec)
    error = refusal(deploy, Untouched(), precision="fp16")
    assert isinstance(error, t2e.InstallationError)
    assert str(error) == (
        "nvidia-modelopt: got no such package; expected nvidia-modelopt for precision 'fp16'; "
        "pip install 'torch2engine[quantize]'"
    )
    half = nn.Linear(3, 3).half().eval()
    assert deploy(half, X.half(), precision="fp16").precision == "fp16"


def test_machine_without_a_gpu_is_told_of_the_cpu(net: Net) -> None:
    """Whatever is missing for TensorRT, the other runtime is named, and it works."""
    error = refusal(t2e.deploy, net, X, cache=False)
    assert isinstance(error, t2e.InstallationError)
    assert "runtime='onnxruntime'" in error.fix
    assert is_equal(deploy(net)(X), net(X))


def test_torchs_own_account_is_where_the_message_says() -> None:
    """What has no words of its own is quoted, and the whole is the exception's cause."""

    class ThroughNumpy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy() * 2)

    error = refusal(deploy, ThroughNumpy())
    assert "\x1b" not in str(error)
    assert error.fix == "see the cause of this exception (`__cause__`) for torch's whole account"
    assert error.__cause__ is not None
    assert str(error.__cause__).splitlines()[0] in str(error)
