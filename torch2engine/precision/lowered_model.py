"""A model in a low precision, with how it was made and how its answers are compared.

Enters: what one lowering made. Leaves: values, and the check of the budget's metric. Separate because `lower`, its
search and `deploy` all pass this value on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerances
from torch2engine.core.errors import ParityError
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.calibration import CalibrationMetric

__all__ = ["LoweredModel"]


@dataclass(frozen=True)
class LoweredModel:
    """A model in the requested precision.

    Args:
        artifact: the model.
        parity_cases: the cases that it was compared on, in its own dtypes.
        tolerance: when the model and its engine count as equal. It has no bounds where a metric decides. None for the
            default.
        judged_as: the precision whose default and sensitivity count; None for the artifact's own.
        outcome: which nodes are low, and why others are not; None for a graph that was not changed.
        reports: PyTorch against the graph, rounded after every operator.
        notes: sentences for the user.
        metric: judges the deployed module; None if the budget has no metric.
        builder_precision: "fp32" or "tf32", for TensorRT's builder; None where the graph's dtypes decide alone.
    """

    artifact: OnnxArtifact
    parity_cases: Sequence[ParityCase]
    tolerance: Tolerances | None
    judged_as: str | None = None
    outcome: PrecisionOutcome | None = None
    reports: tuple[ParityReport, ...] = ()
    notes: tuple[str, ...] = ()
    metric: CalibrationMetric | None = None
    builder_precision: str | None = None

    @property
    def refit_tolerance(self) -> Tolerances | None:
        """When answers count as equal after a refit; None for the default of the precision."""
        return None if self.metric is not None else self.tolerance  # with a metric, the tolerance has no bounds

    def check_metric(self, module: DeployedModule[Any]) -> tuple[str, ...]:
        """Evaluate the metric of the budget, if there is one, on the deployed module.

        Returns:
            a sentence on the result, as notes.

        Raises:
            ParityError: it is below the floor.
        """
        if self.metric is None:
            return ()
        value = self.metric.mean(module)
        sentence = f"Budget.metric of {module.runtime} is {value:.4g}, its floor {self.metric.floor:.4g}"
        if not value >= self.metric.floor:
            raise ParityError(
                "parity",
                report=self.reports[0],
                got=f"{value:.4g} from Budget.metric of {module.runtime}",
                allowed=f"at least its floor {self.metric.floor:.4g}",
                fix="ask for a higher precision",
            )
        return (sentence,)
