"""`benchmarks/fleet.py`: the simulation gives what queueing theory gives, loses no request, and the page's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fleet, fleet_table, scale, table
from benchmarks.evidence import Evidence
from benchmarks.fleet import Fleet, Outcome, compare_with_run, simulate_closed, simulate_open

RESULTS = fleet.RESULTS


def by_rows(rows: int) -> float:
    """1 ms, and 0.1 ms for each row."""
    return 1e-3 + 1e-4 * rows


def test_single_rows_wait_as_a_queue_with_equal_services() -> None:
    """Without batches it is M/D/1: the mean wait is that of Pollaczek and Khinchine."""
    service = by_rows(1)
    share = 0.7
    found = simulate_open(Fleet(1, by_rows, max_batch=1, window_s=0.0), share / service, 60_000)
    expected = service + share * service / (2 * (1 - share))
    assert np.mean(found.seconds) == pytest.approx(expected, rel=0.05)


def test_full_batches_are_the_most_that_engines_do() -> None:
    """Above that rate every batch is full, and the answers come at the engines' pace."""
    found = simulate_open(Fleet(3, by_rows, max_batch=32, window_s=0.005), 1e6, 30_000)
    assert found.rate == pytest.approx(3 * 32 / by_rows(32), rel=0.01)
    assert np.mean(found.rows) > 31


def test_lone_request_waits_for_its_window() -> None:
    """Nobody joins it: its way, the window, its time in the thread, and a call of one row."""
    found = simulate_open(Fleet(1, by_rows, window_s=0.005, request_s=0.001, way_s=0.003), 0.01, 50)
    assert found.quantile_ms(0.5) == pytest.approx(3 + 5 + 1 + 1.1)
    assert set(found.rows) == {1}


def test_closed_loop_is_as_fast_as_the_thread() -> None:
    """Where each request takes the replica's thread for long, the engine waits for the thread."""
    found = simulate_closed(Fleet(1, by_rows, request_s=0.001), 64, 5000)
    assert len(found.seconds) == 5000
    assert found.rate == pytest.approx(1000, rel=0.02)


def test_replicas_that_die_lose_no_request() -> None:
    """Their requests are sent again, each is answered once, and those that waited longer show."""
    steady = Fleet(3, by_rows)
    dying = Fleet(3, by_rows, between_failures_s=2.0, restart_s=0.5)
    calm, hard = (simulate_open(one, 8000, 40_000) for one in (steady, dying))
    assert (len(calm.seconds), calm.repeated) == (40_000, 0)
    assert (len(hard.seconds), sum(hard.rows)) == (40_000, 40_000)
    assert hard.repeated > 0
    assert hard.quantile_ms(0.99) > calm.quantile_ms(0.99)
    alone = simulate_open(Fleet(1, by_rows, between_failures_s=0.5, restart_s=0.2), 500, 2000)
    assert len(alone.seconds) == 2000


def measured_on(host: Fleet, rate: float) -> dict[str, dict[str, Any]]:
    """What loads on a simulated host find, in the form of scale.json."""
    closed = simulate_closed(host, 64, 20_000, seed=6)
    opened = simulate_open(host, closed.rate / 2, 20_000, seed=7)
    quiet = simulate_open(host, closed.rate / 10, 5000, seed=8)
    assert closed.rate == pytest.approx(rate, rel=0.1)

    def told(outcome: Outcome) -> dict[str, Any]:
        spread_ms = [outcome.quantile_ms((place + 0.5) / 200) for place in range(200)]
        quantiles = {"p50_ms": outcome.quantile_ms(0.5), "p99_ms": outcome.quantile_ms(0.99)}
        return {"requests": 20_000, "rate": outcome.rate, "spread_ms": spread_ms, "connections": 64, **quantiles}

    return {"closed": told(closed), "quiet": told(quiet), "open": told(opened)}


def serving_host(variation: float, late_s: float) -> Fleet:
    """A host of one replica with a way of 20 ms, of which every tenth takes longer."""
    spread_s = [0.0] * 90 + [late_s] * 10
    return Fleet(1, by_rows, request_s=5e-4, request_variation=variation, way_s=0.02, way_spread_s=spread_s)


@pytest.mark.parametrize(("variation", "late_s"), [(0.0, 0.03), (1.5, 0.0)])
def test_comparison_meets_a_run_that_is_the_simulations_own(variation: float, late_s: float) -> None:
    """It finds the run's way and its thread, and is as fast."""
    evidence = Evidence()
    compare_with_run(evidence, measured_on(serving_host(variation, late_s), 2000.0), by_rows)
    assert evidence.figures["simulation.way_ms"] == pytest.approx(20, rel=0.05)
    assert evidence.figures["simulation.request_variation"] == pytest.approx(variation, abs=0.25)
    assert evidence.figures["simulation.error"] < 0.05


def test_comparison_finds_how_far_off_a_run_with_slower_ends_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slowest hundredth takes twice as long as predicted, an error of a half, which fewer requests show as well."""
    monkeypatch.setattr(fleet, "FITTED", 1500)
    monkeypatch.setattr(fleet, "SIMULATED", 10_000)
    serve = measured_on(serving_host(1.5, 0.0), 2000.0)
    serve["open"]["p99_ms"] *= 2
    evidence = Evidence()
    compare_with_run(evidence, serve, by_rows)
    assert evidence.figures["simulation.error"] == pytest.approx(0.5, abs=0.05)


def test_thread_whose_times_vary_makes_requests_wait_longer() -> None:
    """Without batches it is M/G/1: the mean wait grows with the square of the variation (Pollaczek and Khinchine)."""
    request_s, share, variation = 1e-3, 0.5, 2.0
    fleet = Fleet(1, lambda rows: 0.0, window_s=0.0, request_s=request_s, request_variation=variation)
    found = simulate_open(fleet, share / request_s, 60_000)
    expected = request_s * (1 + share * (1 + variation**2) / (2 * (1 - share)))
    assert np.mean(found.seconds) == pytest.approx(expected, rel=0.1)


def test_batches_are_closed_though_the_engine_is_busy() -> None:
    """As Ray Serve does it: a slow engine gets the rows of one window each time, not all that have come meanwhile."""
    found = simulate_open(Fleet(1, lambda rows: 0.02, window_s=0.005), 1000, 2000)
    assert np.mean(found.rows) == pytest.approx(6, rel=0.1)
    assert found.rate == pytest.approx(6 / 0.02, rel=0.1)


def test_times_of_batches_come_from_either_evidence() -> None:
    """Between the sizes that were timed they are interpolated; other figures are left alone."""
    for name in ("batch.b{}.ms", "infer.b{}.ms"):
        figures = {name.format(1): 1.0, name.format(9): 3.0, name.format(32): 4.0, "infer.b8.engine_ms": 9.0}
        times = fleet.batch_seconds(figures)
        assert [times(rows) for rows in (1, 5, 9, 32)] == pytest.approx([0.001, 0.002, 0.003, 0.004])


def test_one_stall_of_the_host_does_not_decide_the_slowest_hundredth() -> None:
    """Of the rounds of a load the medians count, of each latency; its requests are all there."""
    rounds = [
        {"rate": rate, "p50_ms": 5.0, "p99_ms": late, "spread_ms": [4.0, 5.0, late], "requests": 10, "wrong": 0}
        for rate, late in ((100.0, 9.0), (90.0, 400.0), (110.0, 11.0))
    ]
    wanted = {"rate": 100.0, "p50_ms": 5.0, "p99_ms": 11.0, "spread_ms": [4.0, 5.0, 11.0], "requests": 30}
    assert scale.median_load(rounds) == wanted


def test_page_says_what_the_evidence_says(repository: Path) -> None:
    """The figures of docs/fleet.md are those of the committed JSON."""
    page = (repository / "docs" / "fleet.md").read_text(encoding="utf-8")
    assert table.between(page) == fleet_table.generate(RESULTS)


def test_sizes_follow_from_the_figures(tmp_path: Path) -> None:
    """GPUs at seven tenths of their rate, a spare one, and the bytes of the images."""
    for name in ("processor", "models", "refit"):
        (tmp_path / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())
    data = json.loads((tmp_path / "processor.json").read_text())
    data["figures"]["infer_stream_uint8.b32.ms"] = 3.2
    (tmp_path / "processor.json").write_text(json.dumps(data))
    text = fleet_table.generate(tmp_path)
    assert "10000 images a second" in text
    assert "| 20000 | 3 + 1 | 3.0 GB/s | 24 Gbit/s |" in text
    (tmp_path / "refit.json").unlink()
    assert fleet_table.generate(tmp_path) == ""
