"""A model of the zoo of which engines answer single submodules: those that an engine answers rightly.

Enters: the trial. Leaves: the explanation of its calls, after a comparison of the whole. Separate from `zoo_fallback`
because it searches the tree of submodules, while the other ways cut a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

import torch2engine as t2e
from benchmarks.zoo_trial import ZooTrial
from torch2engine.core.errors import Torch2EngineError
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import Explanation, GraphPartRecord
from torch2engine.fallback.run_record import RunRecord, time_calls

__all__ = ["answer_in_submodules"]

DEEPEST = 4


def answer_in_submodules(trial: ZooTrial, reference: ZooTrial) -> Explanation:
    """Deploy the largest submodules that an engine answers rightly, and compare the whole at all sizes.

    Args:
        trial: the model; its submodules are swapped.
        reference: the same model in PyTorch.

    Raises:
        ParityError: the whole is off.
        Torch2EngineError: no submodule can be deployed; this is the error of the last one.
    """
    modules = _deploy_largest(trial)
    reference.compare_compiled(trial.model)
    record = RunRecord()
    with _timed(trial.model, modules, record):
        return time_calls(lambda: trial.model(**trial.sample), record)


def _deploy_largest(trial: ZooTrial) -> dict[str, DeployedModule[Any]]:
    """Go down from the children of the model to their children wherever an engine is refused."""
    calls = (trial.sample, *trial.ends, trial.between)
    modules: dict[str, DeployedModule[Any]] = {}
    refusal: Torch2EngineError | None = None
    waiting = _containers(trial.model, "")
    while waiting:
        name = waiting.pop(0)
        try:
            deployed = t2e.deploy_submodules(
                trial.model,
                lambda: [trial.model(**inputs) for inputs in calls],
                [name],
                runtime=trial.runtime,
                cache=False,
            )
        except Torch2EngineError as error:
            refusal = error
        else:
            modules |= deployed.modules
            if name in deployed.modules:
                continue
        waiting += _containers(trial.model.get_submodule(name), f"{name}.")
    if not modules and refusal is not None:
        raise refusal
    return modules


def _containers(module: nn.Module, prefix: str) -> list[str]:
    """The names of the children that have children themselves; a single layer is not worth an engine."""
    names = [prefix + name for name, child in module.named_children() if next(child.children(), None) is not None]
    return names if prefix.count(".") < DEEPEST else []


@contextmanager
def _timed(model: nn.Module, modules: Mapping[str, DeployedModule[Any]], record: RunRecord) -> Generator[None]:
    """Time the calls of deployed submodules as parts, and the rest as none."""
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for name, deployed in modules.items():
        part = GraphPartRecord(deployed.runtime, 0, name)
        record.parts.append(part)
        submodule = model.get_submodule(name)
        forwards[submodule] = submodule.forward
        submodule.forward = _with_time(submodule.forward, part, record)
    try:
        yield
    finally:
        for submodule, forward in forwards.items():
            submodule.forward = forward


def _with_time(forward: Callable[..., Any], part: GraphPartRecord, record: RunRecord) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        with record.timed(part):
            return forward(*args, **kwargs)

    return answer
