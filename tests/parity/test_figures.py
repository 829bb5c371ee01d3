"""Figures are what their names say, cost little memory, and honest candidates stay within the tolerances."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.support.planted_faults import FP32, judge, outputs
from torch2engine.core.config import Tolerance
from torch2engine.parity import figures as _figures
from torch2engine.parity.compare import compare
from torch2engine.parity.tolerance_bounds import Bounds

BOUNDS = Bounds.of(FP32, "fp32")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 6 * 6, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 10),
        torch.nn.Softmax(-1),
    ).eval()


def every_activation(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, layer in net.named_children():
            found[name] = x = layer(x)
    return found


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [
        ("fp32", torch.float32, torch.float64),
        ("fp16", torch.float16, torch.float32),
        ("bf16", torch.bfloat16, torch.float32),
    ],
)
def test_honest_network_passes_at_its_precision(precision: str, low: torch.dtype, high: torch.dtype) -> None:
    """Every activation of a real network passes against the same network in a higher precision; so does batch 1."""
    tolerance = Tolerance.default(precision)
    for batch in (1, 6):
        x = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        exact = every_activation(network().to(high), x.to(high))
        reference = {name: value.to(low) for name, value in exact.items()}
        report = judge(reference, every_activation(network().to(low), x.to(low)), tolerance)
        assert report.passed, str(report)
        worst = report.worst
        assert worst is not None
        assert worst.rel_l2 > 0


@pytest.mark.parametrize("shape", [(512, 1), (512,), (300, 2), (1, 1000), (7, 5, 90), (1,), ()], ids=str)
@pytest.mark.parametrize(
    ("precision", "low"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_honest_matmul_passes_in_every_shape(shape: tuple[int, ...], precision: str, low: torch.dtype) -> None:
    """Rounding noise passes also where elements near zero have no row to be measured by."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(math.prod(shape), 256, generator=generator, dtype=torch.float64).to(low)
    w = torch.randn(256, 1, generator=generator, dtype=torch.float64).to(low)
    reference = (x.double() @ w.double()).to(low).reshape(shape)
    report = judge({"y": reference}, {"y": (x @ w).reshape(shape)}, Tolerance.default(precision))
    assert report.passed, str(report)


@pytest.mark.parametrize("scale", [1, 1000])
def test_dead_channel_with_one_spark_passes(scale: float) -> None:
    """A ReLU channel with one tiny value, noise itself, is no failure of the channel, in whatever unit."""
    reference = np.maximum(np.random.default_rng(0).standard_normal((4, 32, 7, 7)), 0).astype(np.float32)
    reference[:, 5] = 0
    reference[1, 5, 2, 3] = 2e-5
    candidate = reference.copy()
    candidate[1, 5, 2, 3] = 0
    assert judge({"y": scale * reference}, {"y": scale * candidate}).passed


def test_small_channel_beside_large_ones_passes_in_bf16() -> None:
    """A channel that is small by cancellation carries the noise of what cancelled, and passes."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((3, 20, 500)).astype(np.float32)
    reference[:, :, 438] *= 0.02
    candidate = reference + (0.006 * rng.standard_normal(reference.shape)).astype(np.float32)
    assert judge({"y": reference}, {"y": candidate}, Tolerance.default("bf16")).passed


def test_saturated_softmax_passes_in_fp16() -> None:
    """Probabilities of exactly 1 beside tiny ones are no reason to judge the tiny ones alone."""
    logits = 12 * np.eye(10)[np.arange(50) % 10] + 0.1 * np.random.default_rng(0).standard_normal((50, 10))
    noisy = logits + 0.02 * np.random.default_rng(1).standard_normal((50, 10))
    both = [(np.exp(x) / np.exp(x).sum(-1, keepdims=True)).astype(np.float16) for x in (logits, noisy)]
    assert judge({"y": both[0]}, {"y": both[1]}, Tolerance.default("fp16")).passed


def test_figures_are_those_of_the_definition() -> None:
    """Figures are what their names say, computed here in one line each."""
    reference, candidate = outputs()["start"], outputs()["end"]
    row = compare({"y": reference}, {"y": candidate}, FP32)[0]
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    unit = np.abs(r) + np.sqrt(np.mean(r**2, axis=1, keepdims=True))
    ratio = np.abs(c - r) / unit
    where = tuple(int(i) for i in np.unravel_index(np.argmax(ratio), r.shape))
    assert row.max_abs == pytest.approx(np.abs(c - r).max())
    assert row.max_rel == pytest.approx(ratio.max())
    assert row.rel_l2 == pytest.approx(np.linalg.norm(c - r) / np.linalg.norm(r))
    assert row.cosine == pytest.approx(np.sum(r * c) / np.linalg.norm(r) / np.linalg.norm(c))
    assert (row.worst_index, row.shape, row.dtype, row.mismatch) == (where, (32, 40), "float32", 0.0)
    assert (row.reference_value, row.candidate_value) == (r[where], c[where])


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_figures_do_not_depend_on_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are a matter of memory alone."""
    shape = (3, 5, 7, 11)
    reference = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    candidate = (reference + 1e-3 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
    whole = _figures.measure(reference, candidate, BOUNDS)
    monkeypatch.setattr(_figures, "_BLOCK", block)
    parts = _figures.measure(reference, candidate, BOUNDS)
    assert parts.rel_l2 == pytest.approx(whole.rel_l2)
    assert (parts.max_abs, parts.max_rel, parts.worst_index) == (whole.max_abs, whole.max_rel, whole.worst_index)
    assert parts.following == pytest.approx(whole.following)
    assert whole.worst_part is not None
    assert parts.worst_part is not None
    assert parts.worst_part.place == whole.worst_part.place
    assert parts.worst_part.excess == pytest.approx(whole.worst_part.excess)


def test_ties_go_to_the_first_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equally wrong elements the first is shown, whatever the blocks."""
    monkeypatch.setattr(_figures, "_BLOCK", 8)
    assert _figures.measure(np.ones((4, 8)), np.zeros((4, 8)), BOUNDS).worst_index == (0, 0)


def test_thin_slices_are_taken_with_their_neighbours() -> None:
    """Columns of 3 elements go by sixes, and what is left over goes with the last six."""
    candidate = np.ones((3, 20))
    candidate[:, 19] = 2
    worst = _figures.measure(np.ones((3, 20)), candidate, BOUNDS).worst_part
    assert worst is not None
    assert (worst.place, worst.share) == ("slice [:, 12:20]", pytest.approx(math.sqrt(1 / 8)))


@pytest.mark.parametrize(
    ("array", "tensor"),
    [
        (np.ones((3, 4), ml_dtypes.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)),
        (np.ones((3, 4), ml_dtypes.float8_e4m3fn), torch.ones(3, 4).to(torch.float8_e4m3fn)),
        (np.ones((3, 4), np.float16), torch.ones(3, 4, dtype=torch.float16)),
        (np.ones((3, 4), bool), torch.ones(3, 4, dtype=torch.bool)),
        (np.ones((3, 4), np.uint8), torch.ones(3, 4, dtype=torch.uint8)),
        (np.full((3, 4), -1j, np.complex64), torch.full((3, 4), 1j).conj()),
        (np.full((3, 4), -1j), torch.full((3, 4), 1j, dtype=torch.complex128).conj()),
        (np.ones((3, 4), np.float32), torch.ones(4, 3, requires_grad=True).t()),
        (np.float32(1), torch.tensor(1.0)),
    ],
    ids=lambda value: type(value).__module__ + str(value.dtype),
)
def test_array_equals_tensor_of_same_dtype(array: Any, tensor: Any) -> None:
    """An array and a tensor of one dtype are compared as they are, both ways."""
    assert compare({"y": array}, {"y": tensor}, FP32)[0].passed
    assert compare({"y": tensor}, {"y": array}, FP32)[0].passed


def test_large_outputs_are_not_copied() -> None:
    """Comparing 8 million elements takes less memory than one float64 copy of them would."""
    reference = np.ones((80, 100_000), np.float32)
    candidate = reference.copy()
    tracemalloc.start()
    try:
        assert compare({"y": reference}, {"y": candidate}, FP32)[0].passed
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two dozen temporaries of one block each: this does not grow with the outputs.
    assert peak_bytes < 24 * 8 * _figures._BLOCK
