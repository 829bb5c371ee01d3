"""Engines that take bytes: exact, calibrated, refitted, and answered for by the model behind the same arithmetic.

Enters: images of uint8 on the GPU. Leaves: proof that the engine normalises like PyTorch in every precision, captured
or not. Apart because whether TensorRT computes an input of uint8 rightly shows on a GPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e

pytestmark = pytest.mark.xdist_group("preprocess")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = t2e.Preprocess(mean=MEAN, std=STD)
SIDE = {"min": 8, "opt": 16, "max": 32}
AXES = {"x": {0: t2e.Axis("batch", 1, 8, 32), 1: t2e.Axis("height", **SIDE), 2: t2e.Axis("width", **SIDE)}}
BOUNDS = {"fp32": 2e-4, "fp16": 1e-2, "bf16": 4e-2, "int8": 5e-2}


class Net(nn.Module):
    """Convolutions with BatchNorm, and two linear layers; not indifferent to the order of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 16, (3, 2), bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.hidden, self.head = nn.Linear(16, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.conv(x).mean((2, 3))).relu())


def net() -> Net:
    torch.manual_seed(0)
    model = Net().cuda()
    with torch.no_grad():
        model(2 * torch.randn(64, 3, 16, 16, device="cuda") + 1)
    return model.eval()


def images(batch: int = 8, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randint(256, (batch, height, width, 3), dtype=torch.uint8, device="cuda")


@torch.no_grad()
def error(model: nn.Module, module: nn.Module, x: torch.Tensor, layout: str = "NHWC") -> float:
    """Against the formula in its own order, in float64 up to the model."""
    planes = x.permute(0, 3, 1, 2) if layout == "NHWC" else x
    mean, std = (torch.tensor(value, dtype=torch.float64, device="cuda").reshape(-1, 1, 1) for value in (MEAN, STD))
    floats = ((planes.double() / 255 - mean) / std).to(next(model.parameters()).dtype)
    wanted, got = model(floats).float(), module(x).float()
    return float((got - wanted).norm() / wanted.norm())


def deployed(model: nn.Module, x: torch.Tensor, axes: Any = AXES, **options: Any) -> t2e.TRTModule:
    module = t2e.deploy(model, x, axes, **{"preprocess": IMAGENET, "cache": False, **options})
    assert isinstance(module, t2e.TRTModule)
    return module


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", t2e.Precision("int8", keep_fp32=["conv"])])
def test_bytes_are_answered_in_every_precision(precision: Any, figure: Callable[[str, float], None]) -> None:
    """At sizes nobody has checked, on addresses that come back and that don't; calibrated on bytes."""
    low = {} if precision == "fp32" else {"precision": precision, "calibration": [images(), images(3, 20, 12)]}
    model = net()
    module = deployed(model, images(), **low)
    word = precision if isinstance(precision, str) else "int8"
    found = [error(model, module, images(*shape)) for shape in ((1, 8, 8), (8, 16, 16), (32, 32, 32), (5, 19, 11))]
    same = images()
    found += [error(model, module, same) for _ in range(6)]
    figure(f"preprocess.{word}.rel_l2", max(found))
    assert max(found) < BOUNDS[word]
    assert module.signature.inputs[0].dtype == "uint8"
    with pytest.raises(t2e.DtypeError, match="expected uint8"):
        module(same.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_take_bytes(dtype: torch.dtype) -> None:
    """Normalised in float32, then cast."""
    model = net().to(dtype)
    module = deployed(model, images())
    assert error(model, module, images(5, 19, 11)) < BOUNDS["fp16" if dtype == torch.float16 else "bf16"]


def test_planes_of_bytes_are_taken() -> None:
    """In the order NCHW nothing is permuted."""
    model, turned = net(), images().permute(0, 3, 1, 2).contiguous()
    axes = {"x": {0: t2e.Axis("batch", 1, 8, 32)}}
    module = deployed(model, turned, axes, preprocess=t2e.Preprocess(mean=MEAN, std=STD, layout="NCHW"))
    assert error(model, module, turned[:3], "NCHW") < BOUNDS["fp32"]
    strided = images(4).permute(0, 3, 1, 2)  # channels_last
    assert error(model, module, strided, "NCHW") < BOUNDS["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_refit_takes_the_bare_model(tmp_path: Path, precision: str) -> None:
    """Its paths are the model's own, its normalisation stays; after loading too, compared on random bytes."""
    model = net()
    module = deployed(model, images(), precision=precision, config=t2e.BuildConfig(refittable=True))
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(0.8).add_(0.01)
    assert module.stale()
    assert module.refit(model, verify=True).changed
    assert error(model, module, images(5, 19, 11)) < BOUNDS[precision]
    loaded = t2e.load(module.save(tmp_path / "net.t2e"))
    assert isinstance(loaded, t2e.TRTModule)
    with torch.no_grad():
        model.head.bias.add_(1)
    assert loaded.refit(model, verify=True).changed == ("head.bias",)
    assert error(model, loaded, images(5, 19, 11)) < BOUNDS[precision]
    loaded.track(model)
    with torch.no_grad():
        model.conv[1].running_mean.add_(0.1)
    assert error(model, loaded, images()) < BOUNDS[precision]


@pytest.mark.parametrize("policy", ["split", "eager"])
def test_sizes_out_of_range_are_preprocessed(policy: str, recwarn: pytest.WarningsRecorder) -> None:
    """Chunks of bytes, or PyTorch behind the same arithmetic, with its one warning."""
    model = net()
    module = deployed(model, images(), runtime_config=t2e.RuntimeConfig(out_of_range=policy))
    assert error(model, module, images(70)) < BOUNDS["fp32"]
    told = [str(warning.message) for warning in recwarn if "PyTorch answers such calls" in str(warning.message)]
    assert len(told) == (policy == "eager")


def test_benchmark_times_eager_with_its_preprocessing() -> None:
    """Both start from the same bytes, after their answers were compared."""
    model = net()
    report = deployed(model, images()).benchmark(model, rounds=3, warmup=3)
    assert report.parity is not None and report.parity.passed
    assert "PyTorch eager" in {row.candidate for row in report.rows}
