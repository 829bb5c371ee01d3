"""A model of the zoo that deploy() refused, tried again: in parts, by torch.compile, and submodule by submodule.

Enters: the trial, and the error that it ended with. Leaves: which way its answers are right, and the share of the time
that is spent in engines. Separate because only the few models that are refused come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks.zoo_submodules import answer_in_submodules
from benchmarks.zoo_trial import ZooTrial
from torch2engine.core.errors import ParityError, Torch2EngineError, UnsupportedOperatorError
from torch2engine.deployed.explanation import Explanation
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.run_record import RunRecord, time_calls
from torch2engine.fallback.torch_compile import make_compiler

__all__ = [
    "COMPILE",
    "PARTS",
    "SUBMODULES",
    "WAYS",
    "Answered",
    "FallbackRow",
    "answer_compiled",
    "can_fall_back",
    "outcome_of",
    "try_again",
]

PARTS = "fallback=True"
COMPILE = "torch.compile"
SUBMODULES = "deploy_submodules"


@dataclass(frozen=True)
class FallbackRow:
    """What came of a second try.

    Args:
        way: `PARTS`, `COMPILE` or `SUBMODULES`; the last that was tried.
        outcome: as of a row of the sweep; "running" before it has ended.
        error, message: of a try that failed.
        seconds: of each way.
        refused: what was said of the ways before this one.
        engine_share: the share of a call's time that is spent in engines, between 0 and 1; 0 before it is known.
        parts: the number of parts, those in PyTorch among them.
        engines: how many of these are engines.
    """

    way: str
    outcome: str = "running"
    error: str = ""
    message: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    engine_share: float = 0.0
    parts: int = 0
    engines: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for the evidence."""
        return {**asdict(self), "engine_share": round(self.engine_share, 4)}


@dataclass(frozen=True)
class Answered:
    """What answers in a model's place.

    Args:
        explanation: what runs where.
        call: answers the sample.
    """

    explanation: Explanation
    call: Callable[[], object]


def can_fall_back(error: Exception, phase: str) -> bool:
    """Tell whether a second try may answer a model.

    Args:
        error: the one that the model ended with.
        phase: where it ended. An error after deploy() is about an engine that answers already.
    """
    return phase == "deploy" and isinstance(error, Torch2EngineError)


def outcome_of(error: Exception) -> str:
    """The word for an error: "wrong" for answers beyond rounding, "refused" for another typed error, or "untyped"."""
    if isinstance(error, ParityError):
        return "wrong"
    return "refused" if isinstance(error, Torch2EngineError) else "untyped"


def try_again(trial: ZooTrial, error: Exception, record: Callable[[FallbackRow], None]) -> None:
    """Try a model in parts if operators were refused, then by torch.compile, then submodule by submodule.

    The first way that answers counts.

    Args:
        trial: the model.
        error: what deploy() ended with.
        record: takes the row whenever it changes.
    """
    ways = dict(WAYS)
    if not isinstance(error, UnsupportedOperatorError):  # deploy() itself says that parts don't help then
        del ways[PARTS]
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for way, answer in ways.items():
        row = FallbackRow(way, seconds=seconds, refused=refused)
        record(row)
        start = time.perf_counter()
        try:
            explanation = answer(trial).explanation
        except Exception as failure:
            row = replace(row, outcome=outcome_of(failure), error=type(failure).__name__, message=str(failure))
        else:
            engines = sum(part.runs_in != "PyTorch" for part in explanation.parts)
            share = explanation.engine_share
            row = replace(row, outcome="passed", engine_share=share, parts=len(explanation.parts), engines=engines)
        seconds[way] = round(time.perf_counter() - start, 2)
        record(row)
        if row.outcome == "passed":
            return
        refused = {**refused, way: row.message}


def _in_parts(trial: ZooTrial) -> Answered:
    """Deploy a model with fallback=True, and compare it at all sizes."""
    module = trial.deploy(fallback=True)
    trial.compare(module)
    return Answered(module.explain(trial.sample), lambda: module(**trial.sample))


def _compiled(trial: ZooTrial) -> Answered:
    """Compile a model by the backend "torch2engine" of torch.compile, and compare it at all sizes."""
    record = RunRecord()
    compiled: Any = torch.compile(trial.model, backend=make_compiler(CompileOptions(cache=False), record).compile)
    return answer_compiled(trial, compiled, record)


def answer_compiled(
    trial: ZooTrial, compiled: Any, record: RunRecord, others: Sequence[Mapping[str, Any]] | None = None
) -> Answered:
    """Explain what torch.compile made of a model, and compare it.

    Args:
        trial: the model.
        compiled: the same by torch.compile.
        record: of its graphs.
        others: as for `ZooTrial.compare_compiled`.
    """
    explanation = time_calls(lambda: compiled(**trial.sample), record)
    trial.compare_compiled(compiled, others)
    return Answered(explanation, lambda: compiled(**trial.sample))


def _in_submodules(trial: ZooTrial) -> Answered:
    """Deploy what an engine answers of a model, and compare it with the same model in PyTorch at all sizes."""
    swapped = ZooTrial.make(trial.entry, "gpu" if trial.runtime == "tensorrt" else "cpu")
    return Answered(answer_in_submodules(swapped, trial), lambda: swapped.model(**swapped.sample))


WAYS: Mapping[str, Callable[[ZooTrial], Answered]] = {
    PARTS: _in_parts,
    COMPILE: _compiled,
    SUBMODULES: _in_submodules,
}
