"""Callables on a GPU → what a call takes, and what its kernels take alone, within a few tenths of a second.

Enters: callables without arguments. Leaves: medians. Separate from `timing`, which measures thoroughly: this runs in
every deploy(), so its cost is bounded, and it must leave nothing behind. A CUDA graph of the model would take as long
as PyTorch's kernels without their launches. But the model is unknown code: its capture may fail, and leave random
generators and the allocator unusable. So nothing is captured: the kernels wait in the GPU's queue, behind a pause.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from torch2engine.deployed.timing import Call

__all__ = ["CallTime", "time_calls"]

_ROUNDS = 3
_MOST_CALLS = 30  # in a train, and while the GPU pauses
# The GPU's queue takes about a thousand kernels. A train that is launched in this time, at 2 µs a kernel, is as long.
_LAUNCHED_S = 0.002
_LONGEST_PAUSE_S = 0.1
_CYCLES_PER_S = 2e9  # of the fastest GPUs; a pause on others is longer
_PAUSE_OVER_LAUNCHING = 1.5


@dataclass(frozen=True, kw_only=True)
class CallTime:
    """Medians, in µs.

    Args:
        call_us: from the end of one call to the end of the next, where calls follow each other. Launching counts where
            it takes longer than computing.
        kernels_us: the work of a call on the GPU, where no launch is waited for.
    """

    call_us: float
    kernels_us: float


def time_calls(candidates: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, CallTime]:
    """Time callables in turns.

    Args:
        candidates: callables without arguments, by name.
        device: the GPU where they compute.
        seconds: that all callables may take together. A callable that takes more than a twentieth of them is called
            three times nevertheless.

    Returns:
        name -> times, in the order of `candidates`.
    """
    share_s = seconds / len(candidates) / 10  # of a train's rounds; the rest is for pauses and warming up
    calls: dict[str, list[float]] = {name: [] for name in candidates}
    kernels: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.cuda.device(device), torch.no_grad():
        probes = {name: _Probe.of(call) for name, call in candidates.items()}
        for _ in range(_ROUNDS):
            for name, call in candidates.items():
                probe = probes[name]
                if probe.call_s > share_s and kernels[name]:
                    continue  # one turn: a call that takes long is hardly disturbed
                if probe.call_s > share_s:
                    calls[name].append(1e6 * probe.call_s)
                else:
                    calls[name].append(_train_us(call, probe.calls_within(share_s / _ROUNDS)))
                kernels[name].append(_queued_us(call, probe))
    medians = {name: (statistics.median(calls[name]), statistics.median(kernels[name])) for name in candidates}
    return {name: CallTime(call_us=call_us, kernels_us=min(us, call_us)) for name, (call_us, us) in medians.items()}


@dataclass(frozen=True)
class _Probe:
    """One call: the seconds until it has returned, and until the GPU has done it."""

    launch_s: float
    call_s: float

    @classmethod
    def of(cls, call: Call) -> _Probe:
        call()  # which may load kernels and take memory
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        launch_s = time.perf_counter() - start
        torch.cuda.synchronize()
        return cls(launch_s, time.perf_counter() - start)

    def calls_within(self, seconds: float) -> int:
        return max(1, min(_MOST_CALLS, int(seconds / self.call_s)))


def _train_us(call: Call, count: int) -> float:
    """The time of each of so many calls, one after another."""
    torch.cuda.synchronize()
    return _us_between_events(call, count)


def _queued_us(call: Call, probe: _Probe) -> float:
    """The time of a call's kernels, which were all launched before the first one began.

    A call that waits for the GPU by itself waits for the pause as well, and then has the time of its launches too.
    """
    count = max(1, min(_MOST_CALLS, int(_LAUNCHED_S / probe.launch_s)))
    pause_s = min(_LONGEST_PAUSE_S, _PAUSE_OVER_LAUNCHING * count * probe.launch_s)
    torch.cuda.synchronize()
    torch.cuda._sleep(int(pause_s * _CYCLES_PER_S))  # pyright: ignore[reportPrivateUsage]  # the pause of torch's own tests
    return _us_between_events(call, count)


def _us_between_events(call: Call, count: int) -> float:
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    result: object = None
    first.record()
    for _ in range(count):
        result = call()
    last.record()
    last.synchronize()
    del result
    return 1e3 * first.elapsed_time(last) / count
