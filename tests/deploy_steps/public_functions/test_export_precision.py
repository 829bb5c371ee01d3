"""export() in a low precision, and an engine built from it where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.core.config import BuildConfig

X = torch.linspace(-1, 1, 64).reshape(4, 16)
RTX = BuildConfig(flavour="tensorrt_rtx")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small seeded network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_engine_of_a_low_export_has_its_precision(model: nn.Module, precision: str) -> None:
    """export and build make a low engine without a GPU, and both say the right precision."""
    calibration = [X, X / 2] if precision == "int8" else None
    artifact = t2e.export(model, X, precision=precision, calibration=calibration)
    assert artifact.precision == precision
    assert t2e.check(model, artifact, X).passed
    assert t2e.build(artifact, config=RTX).precision == precision


class Overflowing(nn.Module):
    """Its answer is far beyond float16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1e5).square()


def test_low_export_is_judged_before_it_is_given() -> None:
    """A graph in which nothing would compute in the precision is refused, not given."""
    with pytest.raises(t2e.PrecisionError):
        t2e.export(Overflowing(), X, precision="fp16")


def test_options_of_a_low_export_are_checked_as_those_of_deploy(model: nn.Module) -> None:
    """Calibration data beside float32, and a misspelt word, are refused before any work."""
    with pytest.raises(t2e.InputError, match="did you mean 'fp16'"):
        t2e.export(model, X, precision="f_p16")
    with pytest.raises(t2e.InputError, match="calibration: got a list beside precision 'fp32'"):
        t2e.export(model, X, calibration=[X])
