"""Every part of an output is judged in its own units: garbage in a small part fails, and rounding passes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.hidden_parts import HiddenPart, hidden_parts
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.parity.compare import compare
from torch2engine.parity.figures import measure
from torch2engine.parity.tolerance_bounds import Bounds

PARTS = hidden_parts()
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def verdict(part: HiddenPart, candidate: np.ndarray, precision: str, sensitivity: float) -> str:
    """The reason of the only row; "" if it passed."""
    bounds = Bounds.of(None, precision, "tensorrt_rtx")
    moved = {"y": part.movements(sensitivity)}
    return compare({"y": part.values}, {"y": candidate}, bounds, sensitivity=moved)[0].reason


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_garbage_in_a_part_fails_in_every_precision(part: HiddenPart, precision: str) -> None:
    """Garbage of a part's own size never hides behind larger values."""
    assert verdict(part, part.candidate(), precision, PRECISION_TYPES[precision].rounding)


@pytest.mark.parametrize("amplified", [1, 8])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_rounding_passes_in_every_part(part: HiddenPart, precision: str, amplified: int) -> None:
    """Errors of a few units in every part pass, also where the model amplifies them."""
    sensitivity = amplified * PRECISION_TYPES[precision].rounding
    error = sensitivity * (60 if precision == "fp32" else 3)
    assert not verdict(part, part.honest(error), precision, sensitivity)


def test_small_part_passed_without_its_sensitivity() -> None:
    """The same garbage passes by one scale for the whole tensor: it is the sensitivity that finds it."""
    part = next(part for part in PARTS if part.name == "scattered small elements")
    bounds = Bounds.of(None, "fp16", "tensorrt_rtx")
    assert compare({"y": part.values}, {"y": part.candidate()}, bounds)[0].passed


def test_worst_part_is_named_by_its_magnitude() -> None:
    """A part that is no slice is found by the size of its elements."""
    part = next(part for part in PARTS if part.name == "scattered small elements")
    candidate = part.values.copy()
    candidate[part.part] *= 1.5
    moved = part.movements(PRECISION_TYPES["fp16"].rounding)
    worst = measure(part.values, candidate, Bounds.of(None, "fp16", "tensorrt_rtx"), moved).worst_part
    assert worst is not None
    assert worst.place.startswith("the part of all elements below 0.")
    assert worst.excess > 3
