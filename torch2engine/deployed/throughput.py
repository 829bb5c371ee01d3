"""Calls on several streams at once → how many items a second come out of a GPU.

Enters: calls, one list of them for each number of streams. Leaves: rates. Separate from `timing`, where one call
follows the other. Here several calls are in flight: the time of a single call says nothing, and the rate of all calls
counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from torch2engine.core.config import is_count
from torch2engine.core.errors import InputError
from torch2engine.core.spec import Signature
from torch2engine.deployed.timing import Call, collector_waits, shuffled_turns

__all__ = [
    "Rate",
    "ThroughputRow",
    "batch_axis",
    "best_rates",
    "items_per_call",
    "lines_of",
    "measure_rates",
    "read_counts",
]

_TURN_S = 0.1  # hundreds of calls of an ordinary network, so that the beginning and the end of a turn hardly count
_LEAST_CALLS = 4  # on each stream, in a turn
_MOST_CALLS = 20_000
_PROBES = 4  # on each stream


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Calls per second.

    Args:
        calls_per_s: the median over turns.
        least_calls_per_s: the slowest turn.
        calls: calls in a turn.
    """

    calls_per_s: float
    least_calls_per_s: float
    calls: int


@dataclass(frozen=True, kw_only=True)
class ThroughputRow:
    """The rate of a module on one input, with calls in flight on so many streams.

    Args:
        case: e.g. "batch 8".
        streams: how many streams the calls were spread over.
        items: in each call: the size of the batch; 1 where there is none.
        rate: of calls.
        sizes: the axes' sizes in this case.
    """

    case: str
    streams: int
    items: int
    rate: Rate
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def items_per_s(self) -> float:
        """The median rate of items."""
        return self.items * self.rate.calls_per_s

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "case": self.case,
            "streams": self.streams,
            "items": self.items,
            "sizes": dict(self.sizes),
            "items_per_s": self.items_per_s,
            "least_items_per_s": self.items * self.rate.least_calls_per_s,
            "calls": self.rate.calls,
        }


def best_rates(rows: Sequence[ThroughputRow]) -> tuple[ThroughputRow, ...]:
    """The row of the highest rate for each case, in the order of the cases."""
    best: dict[str, ThroughputRow] = {}
    for row in rows:
        if row.case not in best or row.items_per_s > best[row.case].items_per_s:
            best[row.case] = row
    return tuple(best.values())


def measure_rates(
    candidates: Mapping[str, Sequence[Call]], device: torch.device, rounds: int = 7, warmup: int = 20
) -> dict[str, Rate]:
    """Measure how often calls are answered while several of them are in flight.

    One thread makes the calls, by turns on one stream for each call of a candidate. Nothing waits within a turn, which
    takes about a tenth of a second. A turn is timed between two events: all streams wait for the first, and the second
    waits for all streams. So the rate is that of the GPU, or that of the host where the host is slower. In every round
    each candidate has its turn, in shuffled order.

    Args:
        candidates: by name, callables without arguments: the first is called on the first stream, and so on. Results
            are held until the next call on the same stream has returned.
        device: the GPU where they compute.
        rounds: turns for each.
        warmup: calls on each stream beforehand.

    Returns:
        name -> rate, in the order of `candidates`.
    """
    with torch.cuda.device(device), torch.no_grad(), collector_waits():
        torch.cuda.synchronize(device)  # inputs may have come on another stream
        most = max(map(len, candidates.values()))
        streams = [torch.cuda.Stream(device) for _ in range(most)]
        counts: dict[str, int] = {}
        for name, calls in candidates.items():
            _run_in_turn(calls, streams, warmup * len(calls))
            torch.cuda.synchronize(device)
            counts[name] = _fitting_count(calls, streams)
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for name in shuffled_turns(candidates, rounds):
            rates[name].append(counts[name] / _seconds_of(candidates[name], streams, counts[name]))
    return {
        name: Rate(calls_per_s=statistics.median(found), least_calls_per_s=min(found), calls=counts[name])
        for name, found in rates.items()
    }


def _run_in_turn(calls: Sequence[Call], streams: Sequence[torch.cuda.Stream], count: int) -> None:
    """So many calls in all, each on its own stream."""
    results: list[object] = [None] * len(calls)
    for number in range(count):
        index = number % len(calls)
        with torch.cuda.stream(streams[index]):
            results[index] = calls[index]()


def _fitting_count(calls: Sequence[Call], streams: Sequence[torch.cuda.Stream]) -> int:
    """How many calls take a turn's time."""
    probes = _PROBES * len(calls)
    start = time.perf_counter()
    _run_in_turn(calls, streams, probes)
    torch.cuda.synchronize()
    per_call_s = (time.perf_counter() - start) / probes
    fitting = min(_MOST_CALLS, int(_TURN_S / max(per_call_s, 1e-9)))
    return max(_LEAST_CALLS, fitting // len(calls)) * len(calls)


def _seconds_of(calls: Sequence[Call], streams: Sequence[torch.cuda.Stream], count: int) -> float:
    """Seconds from the moment when all streams may start to the end of the last call."""
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    current = torch.cuda.current_stream()
    first.record(current)
    for stream in streams[: len(calls)]:
        stream.wait_event(first)
    _run_in_turn(calls, streams, count)
    for stream in streams[: len(calls)]:
        current.wait_stream(stream)
    last.record(current)
    last.synchronize()
    return first.elapsed_time(last) / 1e3


# What a user asks for.


def read_counts(name: str, given: object, most: int | None = None, fix: str = "") -> list[int]:
    """Read a positive int, or several of them.

    Args:
        name: of the argument.
        given: what the user passed.
        most: the largest number that is allowed; None for any.
        fix: what to do for a larger one.

    Raises:
        InputError: something else, none, or a number above `most`.
    """
    several = cast("Sequence[object]", given) if isinstance(given, Sequence) and not isinstance(given, str) else None
    text = repr(cast("object", given))
    found: list[Any] = [given] if several is None else list(several)
    if not found or not all(is_count(one) for one in found):
        raise InputError(name, got=text, allowed="a positive int, or several of them", fix=f"e.g. {name}=(1, 2, 4)")
    if most is not None and max(found) > most:
        raise InputError(name, got=text, allowed=f"1..{most}, which may compute at once", fix=fix)
    return list(dict.fromkeys(found))


def batch_axis(signature: Signature) -> str:
    """The one dynamic axis that inputs begin with.

    Raises:
        InputError: there is none, or more than one.
    """
    found = _leading_axes(signature)
    if len(found) != 1:
        inputs = ", ".join(map(str, signature.call_inputs))
        raise InputError(
            "batches",
            got=f"a module of {inputs}",
            allowed="inputs that begin with one and the same dynamic axis",
            fix="name axes and sizes instead, in sizes=[...], or leave both out",
        )
    return found.pop()


def _leading_axes(signature: Signature) -> set[str]:
    names = {axis.name for axis in signature.axes}
    return names & {str(spec.shape[0]) for spec in signature.call_inputs if spec.shape}


def items_per_call(signature: Signature, leaves: Sequence[torch.Tensor]) -> int:
    """The size of the axis, or else the size, that the inputs of a call begin with; 1 if they don't begin alike."""
    axes = _leading_axes(signature)
    if len(axes) == 1:
        return signature.resolve([leaf.shape for leaf in leaves])[axes.pop()]
    first = {leaf.shape[0] if leaf.dim() else None for _, leaf in zip(signature.call_inputs, leaves, strict=False)}
    size = first.pop() if len(first) == 1 and not axes else None
    return 1 if size is None else size


def lines_of(rows: Sequence[ThroughputRow]) -> Generator[str]:
    """A table in plain text: a line for each case, a column for each number of streams, and the best."""
    streams = sorted({row.streams for row in rows})
    found = {(row.case, row.streams): row for row in rows}
    head = ["case", *(f"{count} stream{'s' if count > 1 else ''}" for count in streams), "best"]
    cells = [head]
    for best in best_rates(rows):
        rates = [found[best.case, count].items_per_s for count in streams]
        cells.append(
            [best.case, *(f"{rate:.4g}" if rate < 1000 else f"{rate:.0f}" for rate in rates), str(best.streams)]
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        yield "  ".join(
            f"{cell:{'<' if column == 0 else '>'}{widths[column]}}" for column, cell in enumerate(row)
        ).rstrip()
