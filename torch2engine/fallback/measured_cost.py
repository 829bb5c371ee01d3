"""Measures which engines save time: parts that PyTorch answers faster stay there; a slower whole model is refused.

Enters: a cut program with its engines, and a call. Leaves: reasons, with the time that was measured. Separate because
only this file measures time. The rest of the folder decides by what engines can compute.

Parts are timed alone, so their times leave out what is between them: the calls themselves, the guards of torch.compile,
and work of the host that no longer overlaps the GPU's. Therefore the whole is timed too, in the way in which it is
called, beside the model in eager.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from torch2engine.core.errors import BuildError
from torch2engine.deployed.timing import Timing, measure
from torch2engine.fallback.part_runner import PartRunner

__all__ = ["MeasureSideBySide", "check_whole", "find_slow_engine", "find_slow_parts", "least_times"]

MeasureSideBySide = Callable[[Mapping[str, Callable[[], object]], torch.device], Mapping[str, Timing]]
"""Callables by name, and their device → the time of each."""

_MOST_RATIO = 1.03
_MOST_MEASUREMENTS = 3
_CLEARLY_FASTER, _CLEARLY_SLOWER = 0.95, 1.1  # ratios that need no look at the bound


def measure_side_by_side(candidates: Mapping[str, Callable[[], object]], device: torch.device) -> Mapping[str, Timing]:
    """Time callables for about a tenth of a second each."""
    with torch.no_grad():
        return measure(candidates, device=device, rounds=7, warmup=5)


def find_slow_parts(
    graph: fx.GraphModule,
    parts: Mapping[str, PartRunner],
    values: Sequence[Any],
    device: torch.device,
    measure_parts: MeasureSideBySide = measure_side_by_side,
) -> dict[str, str]:
    """Find the parts that PyTorch answers faster than their engines do.

    Args:
        graph: the cut program.
        parts: name of the part's submodule -> what answers it.
        values: the values of a call, as the graph takes them.
        device: where it runs.
        measure_parts: times callables.

    Returns:
        name -> the reason, with both times.
    """
    recorder = _ArgumentsOfParts(graph)
    with torch.no_grad():
        recorder.run(*values)
    reasons: dict[str, str] = {}
    for name, runner in parts.items():
        arguments = recorder.arguments.get(name)
        if arguments is None or runner.refusal:
            continue
        if reason := find_slow_engine(runner, arguments, device, measure_parts):
            reasons[name] = reason
    return reasons


def find_slow_engine(
    runner: PartRunner,
    values: Sequence[Any],
    device: torch.device,
    measure_both: MeasureSideBySide = measure_side_by_side,
) -> str:
    """Tell why a graph is left to PyTorch, with both times; "" if its engine is no slower.

    Args:
        runner: answers the graph by an engine.
        values: of a call.
        device: where it runs.
        measure_both: times callables.
    """
    candidates = {"engine": _call(runner, values), "PyTorch": _call(runner.graph_module, values)}
    timings = measure_both(candidates, device)
    engine, pytorch = (microseconds(timings[key]) for key in ("engine", "PyTorch"))
    return f"its engine takes {engine:.0f} µs a call, PyTorch {pytorch:.0f} µs" if engine > pytorch else ""


def check_whole(
    subject: str,
    candidate: Callable[[], object],
    model: Callable[[], object],
    device: torch.device,
    measure_both: MeasureSideBySide = measure_side_by_side,
) -> str:
    """Refuse what answers in a model's place if it is slower than the model.

    Args:
        subject: names the candidate in the error.
        candidate, model: one call of each, as the user calls them, on the same device.
        device: where they run.
        measure_both: times callables.

    Returns:
        a sentence with both times.

    Raises:
        BuildError: it takes over 3 % more.
    """
    ours, eager = least_times(candidate, model, device, measure_both)
    if ours > _MOST_RATIO * eager:
        raise BuildError(
            subject,
            got=f"{ours:.0f} µs a call, where PyTorch takes {eager:.0f} µs",
            allowed=f"at most {_MOST_RATIO - 1:.0%} more, since only what is faster was asked for",
            fix="keep the PyTorch module, or ask for engines all the same: with fallback=True in deploy(), or with "
            "torch.compile(model, backend='torch2engine')",
        )
    return f"{ours:.0f} µs a call, where PyTorch takes {eager:.0f} µs"


def least_times(
    candidate: Callable[[], object],
    model: Callable[[], object],
    device: torch.device,
    measure_both: MeasureSideBySide = measure_side_by_side,
) -> tuple[float, float]:
    """Time two callables side by side, again and again while their ratio is near the bound or is measured once only.

    Other work on the machine only adds to a time. So the least of several medians is the nearest to the truth.

    Args:
        candidate, model: one call of each.
        device: where they run.
        measure_both: times callables.

    Returns:
        the µs of a call of each.
    """
    ours = eager = math.inf
    for count in range(1, _MOST_MEASUREMENTS + 1):
        timings = measure_both({"candidate": candidate, "model": model}, device)
        ours = min(ours, microseconds(timings["candidate"]))
        eager = min(eager, microseconds(timings["model"]))
        ratio = ours / eager
        if ratio < _CLEARLY_FASTER or (ratio > _CLEARLY_SLOWER and count > 1):
            break
    return ours, eager


def microseconds(timing: Timing) -> float:
    """How long a call takes where calls follow each other: the longer of the host's and the GPU's time."""
    return max(timing.host_us, timing.device_us or 0.0)


def _call(function: Callable[..., object], arguments: Sequence[Any]) -> Callable[[], object]:
    return lambda: function(*arguments)


class _ArgumentsOfParts(fx.Interpreter):
    """Runs a cut program, and keeps the arguments of each part."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.arguments: dict[str, tuple[Any, ...]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a part."""
        self.arguments[str(target)] = tuple(args)
        return super().call_module(target, args, kwargs)
