"""How far single elements of a part's results may be off, where the whole model is compared afterwards.

Enters: deploy(), as it makes the engine of a part. Leaves: the same with more room for single elements, and whether
any part needed that. Separate because only a model in parts is compared twice: part by part, and as a whole.

Rounding moves what is inside a model by more than it moves the model's results. Behind a ReLU, above all, a value near
the kink may be 0 in one computation alone, however often PyTorch's own rounding is tried. So single elements of a part
may be off further than those of a whole model; the bound on each result's size stays. If the whole is off then, the
caller deploys the parts anew without that room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch2engine.core.config import Tolerance
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["RoomForElements"]

_MAX_REL = 0.01  # of an element and its surroundings; in float32 ten times the bound of a whole model's results


class RoomForElements:
    """Deploys parts whose single elements may be off further, if the precision does not allow that anyway.

    Args:
        deploy_part: deploy() with all options but a part's module, sample, dynamic axes and tolerance.
        precision: what the parts compute in.

    Attributes:
        was_needed: whether a part was accepted that the usual bound would have refused.
    """

    def __init__(self, deploy_part: Callable[..., DeployedModule[Any]], precision: str) -> None:
        self.was_needed = False
        self._deploy_part = deploy_part
        self._precision = precision

    def __call__(
        self, part: nn.Module, tensors: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, Any]
    ) -> DeployedModule[Any]:
        """Deploy one part.

        Raises:
            Torch2EngineError: as `deploy`.
        """
        usual = Bounds.of(None, self._precision).max_rel
        tolerance = Tolerance(max_rel=_MAX_REL) if usual < _MAX_REL else None
        module = self._deploy_part(part, tensors, dynamic_axes, tolerance=tolerance)
        assert module.report is not None, "deploy() has made it"
        self.was_needed |= any(map(self._needed_room, module.report.parity))
        return module

    def _needed_room(self, report: ParityReport) -> bool:
        """Whether the usual bounds would have refused these answers."""
        runtime = "onnxruntime" if report.subject.endswith("ONNX Runtime") else ""
        usual = Bounds.of(None, self._precision, runtime).max_rel
        return any(row.max_rel > usual for row in report.rows)
