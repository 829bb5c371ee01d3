"""The judge on the GPU: models that amplify rounding deploy by default, and wrong engines don't pass for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerance
from torch2engine.deployed.judge import judge

BATCH = {"x": {0: t2e.Axis("batch", 1, 2, 4)}}


class Deep(nn.Module):
    """Many convolutions without a norm: every layer's rounding adds to that of all before it."""

    def __init__(self, depth: int = 24) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(3 if not i else 32, 32, 3, padding=1) for i in range(depth)])
        self.head = nn.Linear(32, 10)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = convolution(x).relu()
        return self.head(x.mean((2, 3)))


class Labels(nn.Module):
    """A segmentation head: a label for each pixel, and the three best."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.convolution(x)
        return {"label": scores.argmax(1), "best": scores.topk(3, dim=1).indices}


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_deep_network_deploys_by_default_and_shows_its_sensitivity(precision: str) -> None:
    """No tolerance is needed, and every row of the engine's comparison says how far rounding moves the model."""
    torch.manual_seed(0)
    module = t2e.deploy(Deep().cuda().eval(), images(), BATCH, precision=precision, cache=False)
    assert module.report is not None
    rows = module.report.parity[-1].rows
    assert all(row.passed and row.sensitivity > 0 for row in rows), str(module.report)


def test_engine_of_slightly_other_weights_is_refused_all_the_same() -> None:
    """A sensitive model's bounds are not so wide that a weight that is off by a percent would pass."""
    torch.manual_seed(0)
    model = Deep().cuda().eval()
    x = images()
    module = t2e.deploy(model, x, BATCH, cache=False)
    with torch.no_grad():
        model.convolutions[5].weight.mul_(1.01)
        case = ParityCase("other weights", (x,), {"output": model(x)})
    assert not judge(module, [case]).passed


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_deploy_by_default_in_low_precision(precision: str) -> None:
    """Near ties of an argmax and a top-k don't refuse the engine."""
    torch.manual_seed(0)
    module = t2e.deploy(Labels().cuda().eval(), images(), BATCH, precision=precision, cache=False)
    assert module.report is not None
    assert module.report.passed


def test_tolerance_of_one_output_is_taken() -> None:
    """A Mapping names outputs; another name is refused."""
    model = Labels().cuda().eval()
    module = t2e.deploy(
        model, images(), BATCH, precision="fp16", tolerance={"label": Tolerance(mismatch=0.01)}, cache=False
    )
    assert module.report is not None
    with pytest.raises(t2e.InputError, match="did you mean 'label'"):
        t2e.deploy(model, images(), BATCH, tolerance={"labels": Tolerance(mismatch=0.01)}, cache=False)
