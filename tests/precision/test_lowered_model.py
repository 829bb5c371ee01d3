"""`torch2engine.precision.lowered_model`: a budget's metric decides on the deployed module."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.deploy_models import mlp, sample
from tests.support.parity_tables import table
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import ParityError
from torch2engine.precision.calibration import CalibrationMetric
from torch2engine.precision.lowered_model import LoweredModel


def lowered(metric: CalibrationMetric | None, tolerance: Tolerance | None = None) -> LoweredModel:
    """The float32 model, with a metric that judges it."""
    _, module = mlp()
    return LoweredModel(module._artifact, (), tolerance, reports=(table("PyTorch vs the graph"),), metric=metric)


def metric_of(values: list[float], floor: float) -> CalibrationMetric:
    """One value for each batch, given that the outputs belong to it."""
    model, module = mlp()
    batches = [sample(rows, 6) for rows in range(1, len(values) + 1)]

    def value(outputs: torch.Tensor, batch: torch.Tensor) -> float:
        with torch.no_grad():
            torch.testing.assert_close(outputs, model(batch), rtol=1e-4, atol=1e-5)
        return values[len(batch) - 1]

    return CalibrationMetric(value, floor, module.signature, batches)


def test_metric_at_its_floor_is_accepted_with_a_note() -> None:
    """The mean over the batches counts, and the floor itself is enough."""
    notes = lowered(metric_of([0.25, 0.75], floor=0.5)).check_metric(mlp()[1])
    assert notes == ("Budget.metric of ONNX Runtime is 0.5, its floor 0.5",)


@pytest.mark.parametrize(("values", "got"), [([0.25, 0.5], "0.375"), ([1.0, math.nan], "nan")])
def test_metric_below_its_floor_is_a_parity_error(values: list[float], got: str) -> None:
    """The error has the comparison of the graph; a metric that is no number is not enough either."""
    model = lowered(metric_of(values, floor=0.5))
    with pytest.raises(ParityError) as caught:
        model.check_metric(mlp()[1])
    assert str(caught.value).partition("\n")[0] == (
        f"parity: got {got} from Budget.metric of ONNX Runtime; expected at least its floor 0.5; "
        "ask for a higher precision"
    )
    assert caught.value.report is model.reports[0]


def test_model_without_a_metric_is_judged_by_its_tolerance() -> None:
    """Then a refit keeps to the tolerance as well; a metric has no bounds for it."""
    tolerance = Tolerance.default("fp16")
    model = lowered(None, tolerance)
    assert (model.check_metric(mlp()[1]), model.refit_tolerance) == ((), tolerance)
    assert lowered(metric_of([1.0], 0.5), tolerance).refit_tolerance is None
