"""Rates of calls on several streams at once: `module.benchmark(streams=..., batches=...)` on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.core.errors import InputError
from torch2engine.deployed.throughput import measure_rates

WIDTH = 512
CYCLES = 2_000_000
_HIGHEST_CYCLES_PER_S = 5e9  # of any GPU; launches without a wait come a hundred times as often as such naps end


def nap() -> None:
    """Work of a known length for a small part of the GPU."""
    torch.cuda._sleep(CYCLES)


class Stack(nn.Module):
    """(n, 512) -> (n, 512) through sixteen layers: too little work, for a few rows, to fill a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(16)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def stack() -> tuple[nn.Module, t2e.TRTModule]:
    torch.manual_seed(0)
    model = Stack().cuda().eval()
    axes = {"x": {0: t2e.Axis("batch", 1, 8, 64)}}
    module = t2e.deploy(model, torch.randn(8, WIDTH, device="cuda"), axes)
    assert isinstance(module, t2e.TRTModule)
    return model, module


def test_rates_of_calls_in_flight(stack: tuple[nn.Module, t2e.TRTModule], figure: Callable[[str, float], None]) -> None:
    """Every batch with every number of streams, after parity; several streams fill a GPU that one call doesn't fill."""
    model, module = stack
    report = module.benchmark(model, streams=(1, 4), batches=(1, 64), rounds=3)
    assert [(row.case, row.streams, row.items) for row in report.throughput] == [
        ("batch 1", 1, 1),
        ("batch 1", 4, 1),
        ("batch 64", 1, 64),
        ("batch 64", 4, 64),
    ]
    assert report.parity is not None and report.parity.passed
    assert all(0 < row.rate.least_calls_per_s <= row.rate.calls_per_s for row in report.throughput)
    rates = [row.items_per_s for row in report.throughput]
    figure("throughput.stack.b1.streams4_over_1", rates[1] / rates[0])
    assert rates[2] > rates[0]
    assert [best.items for best in report.best_rates] == [1, 64]
    assert str(report).splitlines()[-3].split() == ["case", "1", "stream", "4", "streams", "best"]


def test_rate_is_the_gpus_where_the_gpu_is_slower() -> None:
    """Naps of a known length: on one stream they follow each other, on four they run side by side."""
    rates = measure_rates({"one": [nap], "four": [nap] * 4}, torch.device("cuda:0"), rounds=3, warmup=2)
    assert rates["one"].calls_per_s < _HIGHEST_CYCLES_PER_S / CYCLES
    assert rates["four"].calls_per_s > 1.2 * rates["one"].calls_per_s
    assert rates["four"].calls % 4 == 0


def test_more_streams_than_compute_at_once_are_refused(stack: tuple[nn.Module, t2e.TRTModule]) -> None:
    """They would take over each other's memory, so the rate would say nothing; the cure works."""
    _, module = stack
    with pytest.raises(InputError) as caught:
        module.benchmark(streams=(1, 8), batches=8)
    assert str(caught.value) == (
        "streams: got (1, 8); expected 1..4, which may compute at once; load the module with RuntimeConfig(streams=8)"
    )
    wide = t2e.TRTModule(module.compiled(), runtime_config=t2e.RuntimeConfig(streams=8))
    assert [row.streams for row in wide.benchmark(streams=(1, 8), batches=8, rounds=1).throughput] == [1, 8]
