"""What every model of the zoo needs, loaded once: the server of a sweep imports this file, and forks its processes.

Enters: nothing. Leaves: the libraries, imported, and a first export, which fills the tables that torch and onnxscript
make at their first use. Together they take longer than many a model. Separate because importing it takes seconds, and
because no GPU may be touched here: a fork can't use a CUDA that its parent has started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() asks NVML then, and starts no driver

import torch
from torch import nn

import torch2engine as t2e
from tests.zoo.torchvision_import import import_torchvision

__all__ = ["load"]

LIBRARIES = (
    "torch.export",
    "torch.onnx",
    "torch._dynamo",
    "onnxscript",
    "timm",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.modeling_outputs",
    "transformers.models.auto.modeling_auto",
)
NOT_STARTED = 3  # cuda.h: CUDA_ERROR_NOT_INITIALIZED


def load() -> None:
    """Import the libraries, those that are missing aside, and deploy a first model on ONNX Runtime.

    Raises:
        SystemExit: CUDA has started.
    """
    with contextlib.suppress(ImportError):
        import_torchvision()
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    batch = t2e.Axis("batch", 1, 2, 4)
    t2e.deploy(model, torch.ones(2, 3, 4, 4), {"input": {0: batch}}, runtime="onnxruntime", cache=False)
    if torch.cuda.is_initialized() or _driver_has_started():
        raise SystemExit(
            "zoo: got a library that starts CUDA while it is imported; expected none, since forks can't use it then; "
            "add --start spawn, which takes longer"
        )


def _driver_has_started() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != NOT_STARTED


load()
