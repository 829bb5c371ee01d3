"""`torch2engine.deploy_steps.request`: which runtime a deploy chooses, and what it refuses before any work is done."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.deploy_steps.capture_model_call import capture_model_call
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.request import DeployRequest, choose_runtime
from torch2engine.trt.gpu import CUDA_LIBRARIES, Gpu


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
        f"NVIDIA driver: got no {CUDA_LIBRARIES[0]} that can be loaded; expected an installed driver; "
        "install the driver until "
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
        f"PyTorch: got torch {torch.__version__}, which sees no CUDA device; expected a CUDA device, "
        "since TRTModule works on CUDA tensors; install a CUDA build of torch on a machine with a "
        "GPU, or deploy with runtime='onnxruntime' to run on the CPU"
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
    assert str(caught.value) == (
        "runtime: got 'onnx'; expected one of 'tensorrt', 'onnxruntime', 'auto', 'fastest'; did you mean 'onnxruntime'?"
    )


def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an export fail, so that whatever is refused was refused before it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an export has begun")

    monkeypatch.setitem(t2e.deploy.__globals__, "export_onnx", refuse)


def test_tolerance_for_no_output_is_refused_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are known when the model has answered once; the cure names the nearest output."""
    unexported(monkeypatch)
    wrong = {"outptu": t2e.Tolerance(rel_l2=1e-2)}
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(nn.Linear(4, 2), torch.randn(2, 4), tolerance=wrong, runtime="onnxruntime", cache=False)
    text = "tolerance: got one for output 'outptu'; expected one for 'output'; did you mean 'output'?"
    assert str(caught.value).startswith(text)
    monkeypatch.undo()
    right = {"output": wrong["outptu"]}
    t2e.deploy(nn.Linear(4, 2), torch.randn(2, 4), tolerance=right, runtime="onnxruntime", cache=False)


def test_generator_without_an_item_is_refused_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, or read before; made anew, as the cure says, it is read whole."""
    unexported(monkeypatch)
    model, data = nn.Linear(4, 2), [torch.randn(2, 4) for _ in range(3)]
    exhausted = (x for x in data)
    assert len(list(exhausted)) == 3
    for calibration in (exhausted, (x for x in ())):
        with pytest.raises(t2e.InputError) as caught:
            t2e.deploy(model, data[0], precision="fp16", calibration=calibration, runtime="onnxruntime", cache=False)
        assert str(caught.value).startswith("calibration: got an iterator without an item; expected at least one input")
        assert str(caught.value).endswith("; pass a list, or make the iterator anew")
        with pytest.raises(t2e.InputError, match="an iterator without an item"):
            t2e.export(model, data[0], precision="fp16", calibration=(x for x in ()))
    monkeypatch.undo()
    read: list[int] = []
    again = (read.append(index) or x for index, x in enumerate(data))
    t2e.deploy(model, data[0], precision="fp16", calibration=again, runtime="onnxruntime", cache=False)
    assert read == [0, 1, 2]


@pytest.mark.parametrize(
    ("dtype", "precision", "measured"),
    [
        (torch.float32, "fp32", {"fp32"}),
        (torch.float32, "tf32", {"fp32", "tf32"}),
        (torch.float32, "fp16", {"fp32", "fp16"}),
        (torch.half, "fp32", {"fp16"}),
        (torch.bfloat16, "tf32", {"bf16"}),
    ],
)
def test_rounding_is_measured_in_the_precisions_that_candidates_have(
    dtype: torch.dtype, precision: Any, measured: set[str]
) -> None:
    """A half model stays one, whatever float32 is computed in: no candidate rounds to float32."""
    model = nn.Linear(4, 2).to(dtype)
    given = ModelAndSample.of(model, torch.randn(2, 4, dtype=dtype), None, None, None, None, ())
    request = DeployRequest.from_arguments(
        given, precision, None, None, "onnxruntime", BuildConfig(), t2e.RuntimeConfig()
    )
    with undisturbed(model):
        assert set(request.sensitivity_precisions(capture_model_call(request))) == measured
