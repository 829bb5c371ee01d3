"""One model of the zoo in a process of its own: made, deployed, compared at sizes between, built.

Enters: a name and a backend on the command line. Leaves: a row as JSON on the last line, and one before each phase, so
that a process that is ended has said where it was. Apart because a model may crash its process or never end.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks._worker import keep_to, parser
from benchmarks.evidence import REPOSITORY
from tests.zoo.entry import AbsentModelError, ZooEntry
from torch2engine.capture.examples import with_examples
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import ParityError, Torch2EngineError
from torch2engine.modules.deployed import artifact_of
from torch2engine.modules.judge import judge
from torch2engine.pipeline.reference_answers import answer_parity_cases

__all__ = ["load_entries", "row_of"]

LONGEST_MESSAGE = 900
LIBRARIES = ("timm", "torchvision", "transformers")
_SITE_PACKAGES = re.compile(r"/[^\s'\"]*/(?:site|dist)-packages/")


def load_entries(models: str) -> Mapping[str, ZooEntry]:
    """The entries of a module."""
    return importlib.import_module(models).ZOO


class Row:
    """What came of one model so far; it is printed whenever a phase begins."""

    def __init__(self, entry: ZooEntry) -> None:
        self.phase = "make"
        self.seconds: dict[str, float] = {}
        self.axes = _described(entry)

    @contextmanager
    def timed(self, phase: str) -> Generator[None]:
        """Take a phase's seconds, whether it fails or not."""
        self.phase = phase
        print(json.dumps(self.to_json("running")), flush=True)
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


def row_of(entry: ZooEntry, backend: str) -> dict[str, Any]:
    """Send a model down the road.

    Returns:
        "outcome": "passed", "refused" (a typed error), "wrong" (an answer beyond rounding), "untyped" or "absent".
        "phase": where it ended. "error", "message": what was said. "seconds": of each phase.
    """
    row = Row(entry)
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
    with row.timed("deploy"):
        module = t2e.deploy(model, sample, entry.axes, runtime=runtime, cache=False)
    assert module.report is not None
    row.seconds |= {f"deploy.{phase}": round(seconds, 2) for phase, seconds in module.report.seconds.items()}
    with row.timed("between"):
        _compare(module, model, entry, sample, between)
    if backend == "cpu":
        with row.timed("build"):
            t2e.build(artifact_of(module), cache=False)


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
        answers = answer_parity_cases(with_examples(captured, [between]), (module.precision,))
    judge(module, answers.parity_cases, notes=answers.notes).raise_if_failed()


def _on(inputs: Mapping[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) for name, value in inputs.items()}


def main() -> None:
    """Try one model."""
    words = parser(__doc__)
    words.add_argument("--models", default="tests.zoo.models", help="module with the entries")
    words.add_argument("name")
    words.add_argument("backend")
    chosen = words.parse_args()
    keep_to(chosen.cores)
    print(json.dumps(row_of(load_entries(chosen.models)[chosen.name], chosen.backend)), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
