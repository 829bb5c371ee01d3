"""Modules that answer by PyTorch in an engine's place, without a race against it.

Enters: a deployed engine with its model and sample. Leaves: a `LiveModule` that was compared with the model. A room of
its own because tests on the CPU and on a GPU make them alike.
"""

from __future__ import annotations

from typing import Any

from torch import nn

import torch2engine as t2e
from torch2engine.deploy_steps.choice_by_time.fastest import Race
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.live.live_program import LIVE_PROGRAMS, MakeProgram

__all__ = ["live_module"]


def live_module(
    engine: DeployedModule[Any],
    model: nn.Module,
    sample: Any,
    axes: Any = None,
    make: MakeProgram = LIVE_PROGRAMS["PyTorch in eager"],
    config: t2e.BuildConfig | None = None,
) -> Any:
    """A module that runs the model in one of PyTorch's forms; the engine describes the call."""
    given = ModelAndSample(model, sample, axes)
    race = Race.of(
        engine, model, given, {"config": config or t2e.BuildConfig(), "tolerance": None, "precision": "fp32"}
    )
    assert race.obstacle == ""
    module = race.prepared("PyTorch", make).module
    race.limit.lift()
    return module
