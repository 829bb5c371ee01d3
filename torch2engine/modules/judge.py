"""A deployed module and the parity cases → `ParityReport`.

Enters: a deployed module, and cases with the reference's answers. Leaves: one report over all cases. Separate
because lowering, `check` and `deploy` judge in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerance, check_tolerance
from torch2engine.modules.deployed import DeployedModule
from torch2engine.parity.compare import compare
from torch2engine.parity.report import ParityReport

__all__ = ["judge"]


def judge(
    candidate: DeployedModule[Any],
    examples: Sequence[ParityCase],
    tolerance: Tolerance | None = None,
    notes: Sequence[str] = (),
) -> ParityReport:
    """Compare the reference's answers with a deployed module's, case by case.

    Args:
        candidate: called with the examples' inputs, on its own device.
        examples: from `make_parity_cases`.
        tolerance: by default `Tolerance.default` of the candidate's precision.
        notes: kept in the report.

    Raises:
        InputError: a tolerance that is none.
    """
    check_tolerance(tolerance)
    bounds = tolerance or Tolerance.default(candidate.precision)
    report = ParityReport((), f"PyTorch vs {candidate.runtime}", bounds, tuple(notes))
    for example in examples:
        answer = candidate.infer([leaf.to(candidate.device, copy=True) for leaf in example.inputs])
        report = report.add(compare(example.outputs, answer, bounds, case=example.name))
    return report
