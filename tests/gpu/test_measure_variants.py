"""BuildConfig(optimize="measure") on a GPU: variants of an engine are built, compared and timed; the choice is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch2engine as t2e
from torch2engine.deploy_steps.choice_by_time import measure_variants
from torch2engine.deploy_steps.choice_by_time.engine_variants import PLAIN, VARIANTS, EngineVariant

BATCH = t2e.Axis("batch", 1, 4, 8)
MEASURE = t2e.BuildConfig(optimize="measure")


class Attention(nn.Module):
    """One block of attention in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(128, 384)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.projection(x).unflatten(-1, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@pytest.fixture
def model() -> nn.Module:
    return Attention().cuda().half().eval()


def _x(batch: int) -> torch.Tensor:
    return torch.randn(batch, 64, 128, device="cuda").half()


def test_variants_are_timed_and_the_choice_is_remembered(model: nn.Module, tmp_path: Path) -> None:
    """A later deploy reads the choice from the cache: it loads that variant, builds nothing and times nothing."""
    axes = {"x": {0: BATCH}}
    module = t2e.deploy(model, _x(4), axes, config=MEASURE, cache=tmp_path, progress=None)
    print(module.report)  # noqa: T201  # for whoever reads a run
    assert isinstance(module, t2e.TRTModule)
    tried = module.report.tried
    assert [one.name for one in tried] == [PLAIN, "attention in the other form", "a profile for each size"]
    assert all(one.microseconds.keys() == {"batch 4"} for one in tried), tried
    assert sum(one.is_chosen for one in tried) == 1
    again = t2e.deploy(model, _x(4), axes, config=MEASURE, cache=tmp_path, progress=None)
    assert again.report.tried == tried
    assert any("chosen by an earlier deploy" in note for note in again.report.notes)
    assert "build" not in again.report.seconds
    assert again.signature == module.signature
    for one in (module, again):
        for batch in (1, 4, 8):
            x = _x(batch)
            with torch.no_grad():
                torch.testing.assert_close(one(x), model(x), rtol=2e-2, atol=2e-2)
    plain = t2e.deploy(model, _x(4), axes, cache=tmp_path, progress=None)
    assert plain.report.tried == ()


def test_fixed_shapes_get_kernels_of_their_own(model: nn.Module, tmp_path: Path) -> None:
    """Only where every shape is one that was compared."""
    module = t2e.deploy(model, _x(4), config=MEASURE, cache=tmp_path, progress=None)
    print(module.report)  # noqa: T201  # for whoever reads a run
    assert [one.name for one in module.report.tried] == [
        PLAIN,
        "attention in the other form",
        "kernels for single shapes",
    ]
    x = _x(4)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=2e-2, atol=2e-2)


def test_variant_that_is_wrong_or_too_late_is_left_out(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is compared like any engine, and none is begun after the time."""
    strict = {"": t2e.Tolerance(rel_l2=0.0, max_rel=0.0, abs=0.0)}
    wrong = EngineVariant(
        name="wrong", changes=lambda arguments: {"tolerance": strict[""]}, suits=lambda module, arguments: True
    )
    monkeypatch.setattr(measure_variants, "VARIANTS", (wrong,))
    module = t2e.deploy(model, _x(4), config=MEASURE, cache=False, progress=None)
    (plain, left) = module.report.tried
    assert plain.is_chosen and plain.reason == "nothing else can take its place"
    assert left.reason.startswith("left out: ParityError: ")
    monkeypatch.setattr(measure_variants, "VARIANTS", VARIANTS)
    late = dataclasses.replace(MEASURE, optimize_seconds=0)
    module = t2e.deploy(model, _x(4), config=late, cache=False, progress=None)
    assert {one.reason for one in module.report.tried[1:]} == {
        "left out: its build would begin after the 0 s of BuildConfig.optimize_seconds"
    }
