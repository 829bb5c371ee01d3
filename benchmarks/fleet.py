"""A fleet of replicas behind a router, simulated: arrivals, the batching window, engines, failures.

    python -m benchmarks.fleet --rate 20000 --replicas 2

Enters: the measured time of a call at each batch size, and of a request's way through a replica. Leaves: the rate and
the latencies that requests would see. Where scale.json is among the results, its run of Ray Serve on one host is
simulated too, from that file alone, and simulation.json says how far off that is. Apart from the benchmarks because
nothing here is timed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import REPOSITORY, Evidence

__all__ = ["Fleet", "Outcome", "batch_seconds", "compare_with_run", "simulate_closed", "simulate_open"]

RESULTS = REPOSITORY / "benchmarks" / "results"
TIMED_BATCH = re.compile(r"(?:batch|infer)\.b(\d+)\.ms")  # of scale.json or processor.json
WINDOW_S = 0.005
MOST_VARIATION = 4.0  # that is looked for, of a request's time in the thread
PASSES = 2  # what the closed loop tells of the thread depends on the way, and the way on the thread
FITTED = 6_000  # requests of each run that is fitted to a measured one
SIMULATED = 20_000  # of the prediction


@dataclass(frozen=True)
class Fleet:
    """Replicas behind a router that sends each request to the less busy one of two.

    Args:
        replicas: how many.
        batch_s: rows of a call -> its seconds; a replica has one engine.
        max_batch: rows that go together.
        window_s: how long the first request of a batch waits for others.
        request_s: of a request in a replica's one Python thread, on average.
        request_variation: the standard deviation of that time, as a share of it; gamma-distributed.
        way_s: of a request to a replica and back, through the router and the network; the median.
        way_spread_s: how much longer than that it takes, or shorter, one for each equal share of the requests.
        between_failures_s: of one replica, on average; 0 for never.
        restart_s: until a replica that died answers again.
    """

    replicas: int
    batch_s: Callable[[int], float]
    max_batch: int = 32
    window_s: float = WINDOW_S
    request_s: float = 0.0
    request_variation: float = 0.0
    way_s: float = 0.0
    way_spread_s: Sequence[float] = (0.0,)
    between_failures_s: float = 0.0
    restart_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What the requests saw.

    Args:
        seconds: of each answered request, in the order of the answers.
        duration_s: until the last answer.
        rows: of each batch.
        repeated: requests that were sent again since their replica died.
    """

    seconds: list[float]
    duration_s: float
    rows: list[int]
    repeated: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.seconds) / self.duration_s

    def quantile_ms(self, share: float) -> float:
        """The latency that this share of the requests does not exceed."""
        return float(np.quantile(self.seconds, share)) * 1e3


@dataclass
class _Replica:
    """One replica. `life` tells its events from those of an earlier life.

    Args:
        queue: when the requests came that wait for a batch.
        held: when all requests came that it has not answered.
    """

    life: int = 0
    is_up: bool = True
    thread_free: float = 0.0
    engine_free: float = 0.0
    window: int = 0
    queue: deque[float] = field(default_factory=deque[float])
    held: list[float] = field(default_factory=list[float])


class _Simulation:
    """The events of one run, in the order of their times.

    Args:
        fleet: what is simulated.
        seed: of all that is random.
        next_request: called with the time of an answer, for a client that then asks again; None for none.
    """

    def __init__(self, fleet: Fleet, seed: int, next_request: Callable[[float], float | None]) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)
        self._next_request = next_request
        self._replicas = [_Replica() for _ in range(fleet.replicas)]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._open = 0
        self._seconds: list[float] = []
        self._rows: list[int] = []
        self._repeated = 0
        if fleet.between_failures_s:
            for replica in self._replicas:
                self._at(self._time_to_failure(), lambda now, it=replica: self._fail(it, now))

    def add_request(self, when: float) -> None:
        """A client sends a request at this time."""
        self._open += 1
        self._at(when, lambda now: self._route(now, now))

    def run(self) -> Outcome:
        """Go through the events until every request is answered."""
        now = 0.0
        while self._open:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return Outcome(self._seconds, now, self._rows, self._repeated)

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _time_to_failure(self) -> float:
        return self._random.expovariate(1 / self._fleet.between_failures_s)

    def _request_time(self) -> float:
        variance = self._fleet.request_variation**2
        if not variance or not self._fleet.request_s:
            return self._fleet.request_s
        return self._random.gammavariate(1 / variance, self._fleet.request_s * variance)

    def _route(self, came: float, now: float) -> None:
        up = [replica for replica in self._replicas if replica.is_up]
        if not up:  # the router keeps it until a replica is there again
            self._at(now + self._fleet.window_s + 1e-3, lambda later: self._route(came, later))
            return
        choice = self._random.sample(up, min(2, len(up)))
        replica = min(choice, key=lambda one: len(one.held))
        replica.held.append(came)
        replica.thread_free = max(now, replica.thread_free) + self._request_time()
        life = replica.life
        self._at(replica.thread_free, lambda later: self._queue(replica, life, came, later))

    def _queue(self, replica: _Replica, life: int, came: float, now: float) -> None:
        if replica.life != life:
            return
        replica.queue.append(came)
        self._gather(replica, now, is_first=len(replica.queue) == 1)

    def _gather(self, replica: _Replica, now: float, is_first: bool) -> None:
        """Start a batch if it is full; else let its window begin with its first request.

        Ray Serve (2.60) closes batches though earlier ones still wait for the engine, and so does this.
        """
        if len(replica.queue) >= self._fleet.max_batch:
            self._start(replica, now)
        elif is_first:
            replica.window += 1
            life, window = replica.life, replica.window
            self._at(now + self._fleet.window_s, lambda later: self._close(replica, life, window, later))

    def _close(self, replica: _Replica, life: int, window: int, now: float) -> None:
        if (replica.life, replica.window) == (life, window) and replica.queue:
            self._start(replica, now)

    def _start(self, replica: _Replica, now: float) -> None:
        rows = [replica.queue.popleft() for _ in range(min(self._fleet.max_batch, len(replica.queue)))]
        replica.window += 1
        replica.engine_free = max(now, replica.engine_free) + self._fleet.batch_s(len(rows))
        life = replica.life
        self._at(replica.engine_free, lambda later: self._answer(replica, life, rows, later))
        if replica.queue:
            self._gather(replica, now, is_first=True)

    def _answer(self, replica: _Replica, life: int, rows: list[float], now: float) -> None:
        if replica.life != life:
            return
        self._rows.append(len(rows))
        for came in rows:
            replica.held.remove(came)
            way_s = max(0.0, self._fleet.way_s + self._random.choice(self._fleet.way_spread_s))
            self._seconds.append(now - came + way_s)
            self._open -= 1
            again = self._next_request(now + way_s)
            if again is not None:
                self.add_request(again)

    def _fail(self, replica: _Replica, now: float) -> None:
        """A replica dies; its clients send what it had once more."""
        lost = replica.held
        self._repeated += len(lost)
        replica.life += 1
        replica.is_up = False
        replica.queue = deque()
        replica.held = []
        for came in lost:
            self._route(came, now)
        up_again = now + self._fleet.restart_s
        self._at(up_again, lambda later: self._restart(replica, later))

    def _restart(self, replica: _Replica, now: float) -> None:
        replica.is_up = True
        replica.thread_free = now
        replica.engine_free = now
        self._at(now + self._time_to_failure(), lambda later: self._fail(replica, later))


def simulate_open(fleet: Fleet, rate: float, requests: int, seed: int = 0) -> Outcome:
    """Requests that come at random times, whether or not earlier ones are answered.

    Args:
        fleet: what answers.
        rate: requests a second.
        requests: how many.
        seed: of all that is random.
    """
    run = _Simulation(fleet, seed, lambda now: None)
    times = random.Random(seed + 1)
    when = 0.0
    for _ in range(requests):
        when += times.expovariate(rate)
        run.add_request(when)
    return run.run()


def simulate_closed(fleet: Fleet, connections: int, requests: int, seed: int = 0) -> Outcome:
    """Clients that send their next request as soon as they have an answer."""
    left = itertools.count(requests - connections, -1)
    run = _Simulation(fleet, seed, lambda now: now if next(left) > 0 else None)
    for number in range(connections):
        run.add_request(number * 1e-6)
    return run.run()


def batch_seconds(figures: Mapping[str, float]) -> Callable[[int], float]:
    """Rows of a call -> its seconds, between those that were timed: in scale.json, or in processor.json."""
    timed = {int(found[1]): ms / 1e3 for name, ms in figures.items() if (found := TIMED_BATCH.fullmatch(name))}
    rows = sorted(timed)
    seconds = [timed[count] for count in rows]
    return lambda count: float(np.interp(count, rows, seconds))


def compare_with_run(evidence: Evidence, serve: Mapping[str, Any], batch_s: Callable[[int], float]) -> None:
    """Simulate the measured load of Ray Serve on one host, and record how far off the prediction is.

    A request's time in a replica comes from the closed loop: its mean from the rate, which it limits, and its variation
    from how far the latencies lie apart, there and in the quiet load. Its way through the router comes from the median
    of the open loop, and how ways differ from the quiet load, in which hardly a request waits for another. The open
    loop's rate and its slowest hundredth are predicted.

    Args:
        evidence: takes the figures.
        serve: the sample "serve" of scale.json.
        batch_s: as for `Fleet`.
    """
    opened: Mapping[str, float] = serve["open"]
    requests = int(opened["requests"])
    rate = float(serve["closed"]["rate"]) / 2
    fleet = Fleet(1, batch_s, request_s=1 / serve["closed"]["rate"])
    for _ in range(PASSES):
        fleet = replace(fleet, request_variation=_find_variation(fleet, serve["closed"], serve["quiet"]))
        fleet = replace(fleet, way_s=0.0, way_spread_s=(0.0,))
        fleet = replace(fleet, way_spread_s=_find_spread_s(fleet, serve["quiet"]))
        median_ms = simulate_open(fleet, rate, FITTED).quantile_ms(0.5)
        fleet = replace(fleet, way_s=max(0.0, opened["p50_ms"] - median_ms) / 1e3)
    outcome = simulate_open(fleet, rate, SIMULATED)
    found = {"rate": simulate_open(fleet, rate, requests).rate, "p99_ms": outcome.quantile_ms(0.99)}
    for name, value in found.items():
        evidence.figure(f"simulation.{name}", value)
        evidence.figure(f"simulation.measured_{name}", opened[name])
    evidence.figure("simulation.way_ms", fleet.way_s * 1e3)
    evidence.figure("simulation.request_variation", fleet.request_variation)
    evidence.figure("simulation.error", max(abs(found[name] / opened[name] - 1) for name in found))


def _find_variation(fleet: Fleet, closed: Mapping[str, Any], quiet: Mapping[str, Any]) -> float:
    """How much a request's time in the thread varies: no more than either load's latencies allow.

    A latency of the closed loop is the sum of the times of all requests in front. They lie farther apart where the
    load itself keeps the host from its work, and then the quiet load sets the limit.
    """
    latest_s = _lateness(quiet["spread_ms"]) / 1e3
    farthest = _relative_spread(closed["spread_ms"])

    def is_allowed(variation: float) -> bool:
        tried = replace(fleet, request_variation=variation)
        in_loop = simulate_closed(tried, int(closed["connections"]), FITTED)
        if _relative_spread(in_loop.seconds) >= farthest:
            return False
        alone = simulate_open(replace(tried, way_spread_s=(0.0,)), float(quiet["rate"]), FITTED)
        return _lateness(alone.seconds) < latest_s

    low, high = 0.0, MOST_VARIATION
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (middle, high) if is_allowed(middle) else (low, middle)
    return low


def _lateness(latencies: Sequence[float]) -> float:
    median, late = np.quantile(latencies, (0.5, 0.95))
    return float(late - median)


def _relative_spread(latencies: Sequence[float]) -> float:
    early, median, late = np.quantile(latencies, (0.25, 0.5, 0.75))  # ends are longer where ways differ
    return float((late - early) / median)


def _find_spread_s(fleet: Fleet, quiet: Mapping[str, Any]) -> list[float]:
    """How ways differ: what the thread and the batches leave unexplained of a quiet load's latencies."""
    measured_s = np.asarray(quiet["spread_ms"]) / 1e3
    shares = (np.arange(len(measured_s)) + 0.5) / len(measured_s)
    simulated_s = np.quantile(simulate_open(fleet, float(quiet["rate"]), FITTED).seconds, shares)
    found: list[float] = ((measured_s - np.median(measured_s)) - (simulated_s - np.median(simulated_s))).tolist()
    return found


def main() -> None:
    """Print what a load would see; compare with the measured run where there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=10_000.0, help="requests a second, of one image each")
    parser.add_argument("--replicas", type=int, default=2, help="GPUs")
    parser.add_argument("--requests", type=int, default=100_000, help="that are simulated")
    parser.add_argument("--window-ms", type=float, default=WINDOW_S * 1e3, help="that a request waits for others")
    parser.add_argument("--request-us", type=float, default=0.0, help="of a request in a replica's Python thread")
    parser.add_argument("--way-ms", type=float, default=0.0, help="of a request to a replica and back")
    parser.add_argument("--between-failures-s", type=float, default=0.0, help="of one replica; 0 for never")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the evidence")
    options = parser.parse_args()
    figures = json.loads((options.results / "processor.json").read_text())["figures"]
    fleet = Fleet(
        replicas=options.replicas,
        batch_s=batch_seconds(figures),
        window_s=options.window_ms / 1e3,
        request_s=options.request_us / 1e6,
        way_s=options.way_ms / 1e3,
        between_failures_s=options.between_failures_s,
        restart_s=figures["cold_start_s"],
    )
    outcome = simulate_open(fleet, options.rate, options.requests)
    print(
        f"{outcome.rate:.0f} requests a second, {np.mean(outcome.rows):.1f} in a batch, {outcome.repeated} sent again"
    )
    print(", ".join(f"p{share * 100:g} {outcome.quantile_ms(share):.2f} ms" for share in (0.5, 0.99, 0.999)))
    scale = options.results / "scale.json"
    if scale.exists():
        measured = json.loads(scale.read_text())
        evidence = Evidence([*measured["covers"], "benchmarks/fleet.py"])
        compare_with_run(evidence, measured["samples"]["serve"], batch_seconds(measured["figures"]))
        evidence.write(options.results / "simulation.json")
        print(f"error of the prediction of {scale.name}: {evidence.figures['simulation.error']:.1%}")


if __name__ == "__main__":
    main()
