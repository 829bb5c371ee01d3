"""Models that were quantised with ModelOpt, and fine-tuned so.

Enters: small models with fake quantisers. Leaves: proof that they go the same road, answer alike and stay as they were.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.build_here import build_here

X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
AXES = {"input": {0: t2e.Axis("batch", 1, 8, 16)}}


def modelopt() -> Any:
    """ModelOpt's quantisation. It is imported when a test runs, since every worker of pytest-xdist reads this file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ModelOpt uses is deprecated in torch 2.13
        return importlib.import_module("modelopt.torch.quantization")


def convolutions() -> nn.Module:
    """A CNN."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers).eval()


def matrices() -> nn.Module:
    """An MLP, which TensorRT-RTX builds in int8."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def quantized(model: nn.Module, config: Any = None) -> nn.Module:
    """With quantisers that were calibrated on X."""
    return modelopt().quantize(model, config or modelopt().INT8_DEFAULT_CFG, lambda calibrated: calibrated(X)).eval()


def deploy(model: nn.Module, precision: str = "fp32") -> t2e.ORTModule:
    """On ONNX Runtime."""
    module = t2e.deploy(model, X, AXES, precision=precision, runtime="onnxruntime")
    assert isinstance(module, t2e.ORTModule)
    return module


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative L2."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("make", [convolutions, matrices])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_quantised_model_answers_alike(make: Callable[[], nn.Module], precision: str) -> None:
    """Its own scales are in the graph, whatever precision is asked for; nothing is quantised twice."""
    plain, model = make(), quantized(make())
    module = deploy(model, precision)
    with torch.no_grad():
        wanted = model(X)
        # A value between two steps may fall to either, by a float's last digit.
        assert distance(module(X), wanted) < 5e-3
        assert distance(plain(X), wanted) > 1e-3
    assert module.precision == "int8"
    assert module.report is not None
    assert module.report.notes == ("the model brings its own quantisation, which stays as it is",)
    nodes = [node.op_type for node in onnx.load(module._artifact.onnx_path).graph.node]
    products = sum(op in ("Conv", "Gemm", "MatMul") for op in nodes)
    assert nodes.count("QuantizeLinear") == nodes.count("DequantizeLinear") == 2 * products
    assert "Clip" not in nodes
    assert t2e.precision_report(module).share("int8") == 1.0


def test_tensorrt_rtx_builds_it() -> None:
    """Matrix products in int8 become an engine."""
    assert build_here(deploy(quantized(matrices()))._artifact).precision == "int8"


def test_fine_tuned_weights_are_deployed() -> None:
    """Training with the quantisers goes on as before a deploy, and the next deploy has the new weights."""
    model = quantized(matrices())
    deploy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.arange(8)
    losses: list[float] = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(X), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert distance(deploy(model)(X), model(X)) < 5e-3


def test_quantisers_stay_as_they_were() -> None:
    """Backend, scales and answers of the model are its own again."""
    model = quantized(matrices())
    parts: dict[str, Any] = {name: part for name, part in model.named_modules() if hasattr(part, "num_bits")}
    before = {name: (part.backend, part.is_enabled) for name, part in parts.items()}
    with torch.no_grad():
        wanted = model(X)
        deploy(model)
        assert torch.equal(model(X), wanted)
    assert {name: (part.backend, part.is_enabled) for name, part in parts.items()} == before


def test_disabled_quantisers_do_nothing() -> None:
    """A model whose quantisers are all off is a float32 model."""
    model = quantized(matrices())
    modelopt().disable_quantizer(model, "*")
    assert deploy(model).precision == "fp32"


def uncalibrated() -> nn.Module:
    """Quantisers that have seen nothing."""
    return modelopt().quantize(matrices(), modelopt().INT8_DEFAULT_CFG, None).eval()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fp8": (lambda: quantized(matrices(), modelopt().FP8_DEFAULT_CFG), "got (4, 3) bits (exponent, mantissa)"),
    "int4": (
        lambda: quantized(matrices(), modelopt().INT4_BLOCKWISE_WEIGHT_ONLY_CFG),
        "got 4 bits (exponent, mantissa)",
    ),
    "uncalibrated": (uncalibrated, "got one that was never calibrated"),
}


@pytest.mark.parametrize(("make", "got"), REFUSED.values(), ids=REFUSED)
def test_other_quantisers_are_refused(make: Callable[[], nn.Module], got: str) -> None:
    """By name, with what can be had; and the model's quantisers are as they were."""
    model = make()
    with pytest.raises(t2e.ExportError) as caught:
        t2e.export(model, X, AXES)
    text = str(caught.value)
    assert text.startswith("quantiser '1.")
    assert got in text
    assert text.endswith("or deploy the model without quantisers and with precision=...")
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "num_bits")]
    assert {part.backend for part in parts} == {None}


def test_modelopt_is_not_imported_for_other_models(run_fork: Callable[[str], Any]) -> None:
    """Export looks for quantisers without importing ModelOpt."""
    found = run_fork(
        "import json, sys, torch, torch2engine as t2e\n"
        "t2e.export(torch.nn.Linear(2, 2), torch.randn(1, 2))\n"
        "print(json.dumps('modelopt' in sys.modules))"
    )
    assert found is False
