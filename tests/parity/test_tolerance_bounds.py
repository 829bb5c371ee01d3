"""`torch2engine.parity.tolerance_bounds`: what the user leaves out follows from precision and runtime."""

from __future__ import annotations

import math

import pytest

from torch2engine.core.config import Tolerance, check_tolerance
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import sensitivity_factor
from torch2engine.parity.tolerance_bounds import Bounds


def test_fields_left_out_are_those_of_the_precision() -> None:
    """A tolerance for one thing leaves the others alone."""
    default = Tolerance.default("fp16")
    bounds = Bounds.of(Tolerance(mismatch=0.5), "fp16", "tensorrt_rtx")
    assert bounds.tolerance == Tolerance(rel_l2=default.rel_l2, max_rel=default.max_rel, abs=default.abs, mismatch=0.5)
    assert bounds.factor == sensitivity_factor("tensorrt_rtx", "fp16") > 0


def test_own_bound_is_not_widened_by_sensitivity() -> None:
    """A user's rel_l2 holds, however sensitive the model is."""
    bounds = Bounds.of(Tolerance(rel_l2=1e-3), "fp32", "tensorrt_rtx")
    assert bounds.allowed_rel_l2(1.0) == 1e-3


def test_sensitivity_allows_a_multiple_up_to_garbage() -> None:
    """The default bound grows with the sensitivity and stops where garbage begins."""
    bounds = Bounds.of(None, "fp32", "tensorrt_rtx")
    assert bounds.allowed_rel_l2(math.nan) == bounds.allowed_rel_l2(1e-8) == Tolerance.default("fp32").rel_l2
    assert bounds.allowed_rel_l2(1e-5) == pytest.approx(1e-5 * bounds.factor)
    assert bounds.allowed_rel_l2(math.inf) == 0.25


def test_outputs_that_are_named_have_their_own_bounds() -> None:
    """A Mapping has a tolerance for some outputs; the rest keep the precision's."""
    bounds = Bounds.of({"labels": Tolerance(mismatch=0.1)}, "bf16")
    assert bounds.of_output("labels").mismatch == 0.1
    assert bounds.of_output("scores") == bounds
    assert bounds.tightened(0.5, 0.0, 0.0).of_output("labels").rel_l2 == bounds.rel_l2 / 2


def test_tolerance_of_another_type_is_refused() -> None:
    """A Mapping must hold tolerances."""
    with pytest.raises(InputError) as caught:
        check_tolerance({"labels": 1e-3})
    assert "tolerance['labels']" in str(caught.value)
