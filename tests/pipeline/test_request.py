"""`torch2engine.pipeline.request`: which runtime a deploy chooses, and what it refuses before any work is done."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.support import deploy_models
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.pipeline.request import choose_runtime
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
    assert (
        str(caught.value)
        == "runtime: got 'onnx'; expected one of 'tensorrt', 'onnxruntime', 'auto'; did you mean 'onnxruntime'?"
    )
