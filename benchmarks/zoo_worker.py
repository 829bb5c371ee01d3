"""One model of the zoo in a process of its own: made, deployed, compared at sizes between, built.

Enters: the words that `zoo_sweep` starts a process with. Leaves: a row through a pipe, and one before each phase, so
that a process that is ended has said where it was. Apart because a model may crash its process or never end.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks._worker import keep_to
from benchmarks.evidence import REPOSITORY
from tests.zoo.entry import AbsentModelError, ZooEntry
from torch2engine.capture.examples import with_examples
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import ParityError, Torch2EngineError
from torch2engine.modules.deployed import artifact_of
from torch2engine.modules.judge import judge
from torch2engine.pipeline.reference_answers import answer_parity_cases

__all__ = ["load_entries", "row_of", "try_model"]

LONGEST_MESSAGE = 900
LIBRARIES = ("timm", "torchvision", "transformers")
_SITE_PACKAGES = re.compile(r"/[^\s'\"]*/(?:site|dist)-packages/")


def load_entries(models: str) -> Mapping[str, ZooEntry]:
    """The entries of a module."""
    return importlib.import_module(models).ZOO


class Row:
    """What came of one model so far.

    Args:
        entry: the model.
        send: takes the row whenever a phase begins.
    """

    def __init__(self, entry: ZooEntry, send: Callable[[dict[str, Any]], None]) -> None:
        self.phase = "make"
        self.send = send
        self.seconds: dict[str, float] = {}
        self.axes = _described(entry)

    @contextmanager
    def timed(self, phase: str) -> Generator[None]:
        """Take a phase's seconds, whether it fails or not."""
        self.phase = phase
        self.send(self.to_json("running"))
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(time.perf_counter() - start, 2)

    def to_json(self, outcome: str, error: str = "", message: str = "") -> dict[str, Any]:
        """The row with its outcome."""
        return {
            "outcome": outcome,
            "phase": self.phase,
            "error": error,
            "message": _without_paths(message)[:LONGEST_MESSAGE],
            "seconds": self.seconds,
            "axes": self.axes,
        }


def _described(entry: ZooEntry) -> dict[str, list[int]]:
    """{axis: [min, max, multiple_of]}."""
    axes = {axis.name: axis for by_dimension in entry.axes.values() for axis in by_dimension.values()}
    return {name: [axis.min, int(axis.max or axis.min), axis.multiple_of] for name, axis in axes.items()}


def _without_paths(message: str) -> str:
    """A message without the places of this machine."""
    return _SITE_PACKAGES.sub("", message.replace(f"{REPOSITORY}/", ""))


def row_of(entry: ZooEntry, backend: str, send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Send a model down the road.

    Args:
        entry: the model.
        backend: "cpu" or "gpu".
        send: takes the row whenever a phase begins.

    Returns:
        "outcome": "passed", "refused" (a typed error), "wrong" (an answer beyond rounding), "untyped" or "absent".
        "phase": where it ended. "error", "message": what was said. "seconds": of each phase.
    """
    row = Row(entry, send)
    try:
        with torch.no_grad():
            _deploy(entry, backend, row)
    except AbsentModelError as error:
        return row.to_json("absent", message=str(error))
    except ModuleNotFoundError as error:
        outcome = "absent" if error.name in LIBRARIES else "untyped"
        return row.to_json(outcome, type(error).__name__, str(error))
    except ParityError as error:
        return row.to_json("wrong", type(error).__name__, str(error))
    except Torch2EngineError as error:
        return row.to_json("refused", type(error).__name__, str(error))
    except Exception as error:
        return row.to_json("untyped", type(error).__name__, str(error))
    return row.to_json("passed")


def _deploy(entry: ZooEntry, backend: str, row: Row) -> None:
    """Deploy a model, compare it at sizes between, and build its engine where that is not done yet."""
    device, runtime = ("cuda", "tensorrt") if backend == "gpu" else ("cpu", "onnxruntime")
    with row.timed("make"):
        model = entry.make().to(device)
        sample, between = (_on(entry.sample(entry.sizes(which)), device) for which in ("opt", "between"))
        ends = [_on(entry.sample(entry.sizes(which)), device) for which in ("min", "max")]
    with row.timed("deploy"):
        examples = ends if entry.is_given_examples else None
        module = t2e.deploy(model, sample, entry.axes, examples=examples, runtime=runtime, cache=False)
    assert isinstance(module, (t2e.TRTModule, t2e.ORTModule)) and module.report is not None
    row.seconds |= {f"deploy.{phase}": round(seconds, 2) for phase, seconds in module.report.seconds.items()}
    with row.timed("between"):
        _compare(module, model, entry, sample, between)
    if backend == "cpu":
        artifact = artifact_of(module)
        assert isinstance(artifact, t2e.OnnxArtifact)  # nothing falls back to PyTorch here
        with row.timed("build"):
            t2e.build(artifact, cache=False)


def _compare(
    module: t2e.TRTModule | t2e.ORTModule, model: nn.Module, entry: ZooEntry, sample: Any, between: Any
) -> None:
    """Compare a deployed module with its model at other sizes.

    Raises:
        ParityError: they differ.
    """
    with undisturbed(model):
        captured = capture_call(model, sample, entry.axes)
        captured = dataclasses.replace(captured, signature=module.signature)
        answers = answer_parity_cases(with_examples(captured, [between]), sensitivity_precisions=(module.precision,))
    judge(module, answers.parity_cases, notes=answers.notes).raise_if_failed()


def _on(inputs: Mapping[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) for name, value in inputs.items()}


def try_model(name: str, backend: str, models: str, cores: str, sender: Connection, prints: Path) -> None:
    """Try one model: all that a process of a sweep does.

    Args:
        name: of the entry.
        backend: "cpu" or "gpu".
        models: module with the entries.
        cores: numbers of the CPU cores to use, with commas.
        sender: takes the rows.
        prints: takes what the process prints.
    """
    os.setsid()  # whoever ends this process ends with it what it has started
    target = os.open(prints, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(target, stream)
    keep_to(cores)
    sender.send(row_of(load_entries(models)[name], backend, sender.send))
