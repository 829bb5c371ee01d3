"""`build`, in the process of the tests.

Enters: what `build` takes. Leaves: the engine that it makes. Separate because starting a builder process takes several
times as long as building a test's small graph in it. The process has tests of its own in tests/builder/.
"""

from __future__ import annotations

from typing import Any

import pytest

import torch2engine as t2e
from torch2engine.builder import load_or_build, plan
from torch2engine.core.progress import PhaseReport

__all__ = ["build_here"]


def build_here(*arguments: Any, **options: Any) -> t2e.EngineArtifact:
    """The engine that `build` makes of these arguments, by the same steps, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_or_build, "compile_in_child", _compile_here)
        return t2e.build(*arguments, **options)


def _compile_here(request: plan.PlanRequest, report: PhaseReport, *_: Any, **__: Any) -> plan.PlanFacts:
    return plan.compile_plan(request, report)
