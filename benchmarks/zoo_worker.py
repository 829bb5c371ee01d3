"""One model of the zoo in a process of its own: made, deployed, compared at sizes between, built.

Enters: the words that `zoo_sweep` starts a process with. Leaves: a row through a pipe, and one before each phase, so
that a process that is ended has said where it was. Apart because a model may crash its process or never end.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch

import torch2engine as t2e
from benchmarks._worker import keep_to
from benchmarks.evidence import REPOSITORY
from benchmarks.zoo_fallback import FallbackRow, can_fall_back, outcome_of, try_again
from benchmarks.zoo_places import Place, show_only
from benchmarks.zoo_trial import ZooTrial
from tests.zoo.entry import AbsentModelError, ZooEntry
from torch2engine.deployed.module_access import artifact_of

__all__ = ["Row", "Send", "TryEntry", "load_entries", "row_of", "shortened", "try_model"]

Send: TypeAlias = "Callable[[dict[str, Any]], None]"
TryEntry: TypeAlias = "Callable[[ZooEntry, str, Send], dict[str, Any]]"
"""Tries a model on "cpu" or "gpu": sends its row whenever that changes, and returns the last one."""

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
        send: takes the row whenever it changes.

    Attributes:
        failure: the error that ended the try; None without one.
    """

    def __init__(self, entry: ZooEntry, send: Send) -> None:
        self.phase = "make"
        self.outcome = "running"
        self.error = ""
        self.message = ""
        self.failure: Exception | None = None
        self.fallback: FallbackRow | None = None
        self.send = send
        self.seconds: dict[str, float] = {}
        self.axes = _described(entry)

    @contextmanager
    def timed(self, phase: str) -> Generator[None]:
        """Take a phase's seconds, whether it fails or not."""
        self.phase = phase
        self.send(self.to_json())
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = round(time.perf_counter() - start, 2)

    @contextmanager
    def tried(self) -> Generator[None]:
        """Try the model without gradients, and note what came of it: "passed" where nothing else was noted.

        An error ends the try, and is kept as `failure`.
        """
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            self.failure = error
            self.end_with(error)
        if self.outcome == "running":
            self.end("passed")

    def end(self, outcome: str, error: Exception | None = None) -> None:
        """Note what came of the model.

        Args:
            outcome: the word for it.
            error: the one that it ended with.
        """
        self.outcome = outcome
        self.error = "" if error is None or outcome == "absent" else type(error).__name__
        self.message = "" if error is None else str(error)

    def end_with(self, error: Exception) -> None:
        """Note the error that the model ended with; "absent" where the installed libraries lack the model."""
        lacks_library = isinstance(error, ModuleNotFoundError) and error.name in LIBRARIES
        self.end("absent" if lacks_library or isinstance(error, AbsentModelError) else outcome_of(error), error)

    def take_fallback(self, fallback: FallbackRow) -> None:
        """Take over what came of a second try."""
        self.fallback = fallback
        self.send(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The row as it is now."""
        row: dict[str, Any] = {
            "outcome": self.outcome,
            "phase": self.phase,
            "error": self.error,
            "message": shortened(self.message),
            "seconds": dict(self.seconds),
            "axes": self.axes,
        }
        if self.fallback is not None:
            fallback = self.fallback.to_json()
            refused = {way: shortened(message) for way, message in fallback["refused"].items()}
            row["fallback"] = {**fallback, "message": shortened(fallback["message"]), "refused": refused}
        return row


def _described(entry: ZooEntry) -> dict[str, list[int]]:
    """{axis: [min, max, multiple_of]}."""
    axes = {axis.name: axis for by_dimension in entry.axes.values() for axis in by_dimension.values()}
    return {name: [axis.min, int(axis.max or axis.min), axis.multiple_of] for name, axis in axes.items()}


def shortened(message: str) -> str:
    """The beginning of a message, without the places of this machine."""
    return _SITE_PACKAGES.sub("", message.replace(f"{REPOSITORY}/", ""))[:LONGEST_MESSAGE]


def row_of(entry: ZooEntry, backend: str, send: Send) -> dict[str, Any]:
    """Deploy a model; if that is refused, try it again in parts and by torch.compile.

    Args:
        entry: the model.
        backend: "cpu" or "gpu".
        send: takes the row whenever it changes.

    Returns:
        "outcome": "passed", "refused" (a typed error), "wrong" (an answer beyond rounding), "untyped" or "absent".
        "phase": where it ended. "error", "message": what was said. "seconds": of each phase. "fallback": what came of
        the second try, where there was one.
    """
    row = Row(entry, send)
    trial: ZooTrial | None = None
    with row.tried():
        with row.timed("make"):
            trial = ZooTrial.make(entry, backend)
        _deploy(trial, row)
    if trial is not None and row.failure is not None and can_fall_back(row.failure, row.phase):
        with torch.no_grad():
            try_again(trial, row.failure, row.take_fallback)
    return row.to_json()


def _deploy(trial: ZooTrial, row: Row) -> None:
    """Deploy a model, compare it at sizes between, and build its engine where that is not done yet."""
    with row.timed("deploy"):
        module = trial.deploy()
    assert module.report is not None
    row.seconds |= {f"deploy.{phase}": round(seconds, 2) for phase, seconds in module.report.seconds.items()}
    with row.timed("between"):
        trial.compare(module)
    if trial.runtime == "onnxruntime":
        artifact = artifact_of(module)
        assert isinstance(artifact, t2e.OnnxArtifact)  # nothing is left to PyTorch here
        with row.timed("build"):
            t2e.build(artifact, cache=False)


def try_model(
    try_entry: TryEntry, name: str, backend: str, models: str, place: Place, sender: Connection, prints: Path
) -> None:
    """Try one model: all that a process of a sweep does.

    Args:
        try_entry: what is done with the model.
        name: of the entry.
        backend: "cpu" or "gpu".
        models: module with the entries.
        place: where it runs.
        sender: takes the rows.
        prints: takes what the process prints.
    """
    os.setsid()  # whoever ends this process ends with it what it has started
    target = os.open(prints, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(target, stream)
    show_only(place.gpu)
    keep_to(place.cores)
    sender.send(try_entry(load_entries(models)[name], backend, sender.send))
