"""Callables → `Timing` each: host and device time per call, measured side by side.

Enters: callables without arguments. Leaves: medians and 95th percentiles. Separate from `benchmark` because the
benchmarks of this repository also time callables that are no module. They are warm, take turns, and are synchronised
around and never inside.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch

from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import DeviceError, InputError
from torch2engine.trt.gpu import require_gpu

__all__ = ["Call", "Timing", "collector_waits", "measure", "shuffled_turns"]

Call = Callable[[], object]

_MOST_CALLS = 200
# A launch queue takes about a thousand kernels, and few kernels are shorter than 10 µs. A train of calls this long
# never fills it, so its host time is that of launching alone.
_TRAIN_S = 0.010
_PROBES = 3
_REHEARSED = 5  # calls right before a train: the caches hold what other candidates did


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time per call, in µs.

    Args:
        host_us, host_p95_us: how long a call keeps the calling thread; median and 95th percentile.
        device_us, device_p95_us: from the end of one call to the end of the next on the GPU, by events around a train
            of calls. Where launching takes longer than computing, it is the time of launching. None on the CPU.
        calls: calls per train; on the CPU, where calls are timed one by one, per round.
        rounds: trains, which the percentiles are over (on the CPU: over all calls).
    """

    host_us: float
    host_p95_us: float
    device_us: float | None = None
    device_p95_us: float | None = None
    calls: int = 1
    rounds: int = 1


def measure(
    candidates: Mapping[str, Call],
    *,
    device: torch.device | str,
    rounds: int = 15,
    calls: int | None = None,
    warmup: int = 20,
    streams: Mapping[str, torch.cuda.Stream] | None = None,
) -> dict[str, Timing]:
    """Time callables side by side.

    In every round each candidate has its turn, in shuffled order, so that a drift of clocks hits all of them. A turn on
    a GPU begins with a few calls. Two trains of calls follow: one is timed by the host's clock, the other between two
    events. Before each train the GPU is synchronised. On the CPU calls are timed one by one. A result is held until the
    next call has returned, as in `y = module(x)`. The garbage collector waits.

    Args:
        candidates: callables without arguments, by name; they may synchronise or not.
        device: where they compute; it decides how they are timed.
        rounds: turns for each.
        calls: calls in a train; None chooses, for each, up to 200 that take 10 ms together.
        warmup: calls of each beforehand.
        streams: the current stream during the calls of these candidates; by default the caller's current one.

    Returns:
        name -> Timing, in the order of `candidates`.

    Raises:
        InputError: nothing to measure, a number out of range, or a stream of an unknown candidate.
        DeviceError: neither the CPU nor a CUDA device.
        InstallationError: a CUDA device that is not there.
    """
    for name, value, least in (("rounds", rounds, 1), ("calls", calls, 1), ("warmup", warmup, 0)):
        _check_number(name, value, least)
    if not candidates:
        raise InputError("candidates", got="none", allowed="at least one callable", fix="pass {'name': callable}")
    streams = streams or {}
    strangers = sorted(set(streams) - set(candidates))
    if strangers:
        raise InputError(
            "streams",
            got=", ".join(map(repr, strangers)),
            allowed=", ".join(map(repr, candidates)),
            fix="name candidates",
        )
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise DeviceError("measure", got=f"device {where}", allowed="'cpu' or a CUDA device", fix="e.g. device='cpu'")
    if where.type == "cpu":
        if streams:
            raise InputError("streams", got="streams on the CPU", allowed="none", fix="leave them out")
        with collector_waits():
            return _measured_on_cpu(candidates, rounds, calls, warmup)
    require_gpu(cast("int | None", where.index) or 0)
    with torch.cuda.device(where), collector_waits():
        return _measured_on_gpu(candidates, rounds, calls, warmup, streams)


def _check_number(name: str, value: object, least: int) -> None:
    if value is None and name == "calls":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(name, got=repr(value), allowed=f"an int of at least {least}", fix="pass such a number")


@contextmanager
def collector_waits() -> Generator[None]:
    on = gc.isenabled()
    gc.collect(1)  # of what is new: looking through all that lives takes longer than many a measurement
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def shuffled_turns(names: Iterable[str], rounds: int) -> Generator[str]:
    """Every name once in each round, in a new order each time."""
    order = list(names)
    shuffler = random.Random(RANDOM_SEED)
    for _ in range(rounds):
        shuffler.shuffle(order)
        yield from order


def _fitting(per_call_s: float) -> int:
    return max(1, min(_MOST_CALLS, int(_TRAIN_S / max(per_call_s, 1e-9))))


def _percentile(samples: Sequence[float], share: float) -> float:
    """The value below which this share of the samples lies, between neighbours by their distance."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _time_run_of_calls(call: Call, calls: int) -> float:
    """Seconds of the host for this number of calls; each result is dropped when the next one is there."""
    result: object = None
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _one_by_one(call: Call, calls: int) -> list[float]:
    """Seconds of each of so many calls."""
    result: object = None
    seconds: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    del result
    return seconds


def _measured_on_cpu(candidates: Mapping[str, Call], rounds: int, calls: int | None, warmup: int) -> dict[str, Timing]:
    counts: dict[str, int] = {}
    for name, call in candidates.items():
        _time_run_of_calls(call, warmup)
        counts[name] = calls or _fitting(_time_run_of_calls(call, _PROBES) / _PROBES)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for name in shuffled_turns(candidates, rounds):
        seconds[name] += _one_by_one(candidates[name], counts[name])
    return {
        name: Timing(
            host_us=1e6 * statistics.median(samples),
            host_p95_us=1e6 * _percentile(samples, 0.95),
            calls=counts[name],
            rounds=rounds,
        )
        for name, samples in seconds.items()
    }


def _measured_on_gpu(
    candidates: Mapping[str, Call],
    rounds: int,
    calls: int | None,
    warmup: int,
    streams: Mapping[str, torch.cuda.Stream],
) -> dict[str, Timing]:
    counts: dict[str, int] = {}
    for name, call in candidates.items():
        with torch.cuda.stream(streams.get(name)):
            _time_run_of_calls(call, warmup)
            torch.cuda.synchronize()
            counts[name] = calls or _fitting(_until_idle(call, _PROBES))
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    host: dict[str, list[float]] = {name: [] for name in candidates}
    device: dict[str, list[float]] = {name: [] for name in candidates}
    for name in shuffled_turns(candidates, rounds):
        call = candidates[name]
        count = counts[name]
        with torch.cuda.stream(streams.get(name)):
            _time_run_of_calls(call, _REHEARSED)
            torch.cuda.synchronize()
            host[name].append(1e6 * _time_run_of_calls(call, count) / count)
            torch.cuda.synchronize()
            first.record()
            _time_run_of_calls(call, count)
            last.record()
            last.synchronize()
            device[name].append(1e3 * first.elapsed_time(last) / count)
    return {
        name: Timing(
            host_us=statistics.median(host[name]),
            host_p95_us=_percentile(host[name], 0.95),
            device_us=statistics.median(device[name]),
            device_p95_us=_percentile(device[name], 0.95),
            calls=counts[name],
            rounds=rounds,
        )
        for name in candidates
    }


def _until_idle(call: Call, calls: int) -> float:
    """Seconds per call until the device has done them."""
    start = time.perf_counter()
    _time_run_of_calls(call, calls)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls
