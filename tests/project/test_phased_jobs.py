"""`benchmarks/phased_jobs.py`: who waits for whom, what is reported, and what becomes of a job that fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.phased_jobs import Job, run_jobs

# A job without PyTorch's imports: {before} is run before it is ready, {after} once its turn has come.
SCRIPT = """
import json, os, signal, sys, time
def say(**report): print("@report " + json.dumps(report), flush=True)
{before}
print("noise", flush=True)
print("@prepared", flush=True)
assert sys.stdin.readline() == "go\\n"
{after}
"""


def job(name: str, before: str = "", after: str = "", place: str = "") -> Job:
    """A process that runs these lines."""
    return Job(name, [sys.executable, "-S", "-c", SCRIPT.format(before=before, after=after)], place, {"TITLE": name})


def ran(
    *jobs: Job, workers: int = 4, prepare_s: float = 60, time_s: float = 60, turns_s: float = 600
) -> tuple[list[Any], dict[str, str]]:
    """The reports as (job, report) in their order, and the failures."""
    reports: list[Any] = []

    def take(one: Job, report: Mapping[str, Any]) -> None:
        reports.append((one.name, dict(report)))

    failures = run_jobs(jobs, workers, prepare_s, time_s, take, turns_s)
    return reports, failures


def test_jobs_are_timed_when_all_are_prepared_and_one_at_a_time() -> None:
    """No job is timed while another prepares, even one that waits for a worker; nor while one of its place is."""
    timed = 'say(step="begin"); say(step="end", title=os.environ["TITLE"])'
    jobs = [job(name, before='say(step="made")', after=timed) for name in "abc"]
    reports, failures = ran(*jobs, workers=1)
    assert failures == {}
    steps = [report["step"] for _, report in reports]
    assert steps == ["made"] * 3 + ["begin", "end"] * 3
    ends = [(name, report["title"]) for name, report in reports if report["step"] == "end"]
    assert ends == [("a", "a"), ("b", "b"), ("c", "c")]  # in the order in which they are given


def test_job_that_fails_loses_no_other_ones_reports() -> None:
    """What it had reported is there, with its last words; the others run on."""
    reports, failures = ran(
        job("early", before='say(found=1); sys.exit("no such library")'),
        job("late", after='say(found=2); raise RuntimeError("an illegal access")'),
        job("killed", after="os.kill(os.getpid(), signal.SIGKILL)"),
        job("right", after="say(found=3)"),
    )
    assert {report["found"] for _, report in reports} == {1, 2, 3}
    assert sorted(failures) == ["early", "killed", "late"]
    assert failures["early"] == "ended with 1 before it was ready\nno such library"
    assert failures["late"].startswith("ended with 1\nTraceback")
    assert failures["late"].endswith("RuntimeError: an illegal access")
    assert failures["killed"] == "ended with -9"


def test_job_that_is_not_prepared_in_time_is_ended_with_its_own_processes() -> None:
    """A builder or compiler of such a job does not run on: it would hold the output open, and be waited for."""
    _, failures = ran(job("endless", before="os.fork(); time.sleep(600)"), prepare_s=1)
    assert failures == {"endless": "not ready after 1 s of preparation"}


def test_job_without_a_worker_in_time_is_not_begun() -> None:
    """It says so; nothing is left out silently."""
    _, failures = ran(job("waiting"), prepare_s=0)
    assert failures == {"waiting": "not begun: the 0 s of preparation are over"}


def test_job_that_does_not_end_is_ended() -> None:
    """A peer that hangs costs its own time alone."""
    # It reports before its turn: its second may be over before it has said anything.
    reports, failures = ran(job("hangs", before="say(found=1)", after="time.sleep(600)"), time_s=1)
    assert failures == {"hangs": "no end 1 s after its turn came"}
    assert reports == [("hangs", {"found": 1})]


def test_job_that_is_done_is_not_waited_for() -> None:
    """Its libraries may take long to end, or crash meanwhile: all that it has found is reported by then."""
    reports, failures = ran(job("slow end", after='say(found=1); print("@done", flush=True); time.sleep(600)'))
    assert failures == {}
    assert reports == [("slow end", {"found": 1})]


def test_jobs_are_not_timed_when_the_time_for_all_turns_is_over() -> None:
    """The one whose turn it is is ended, and those behind it don't begin; each says so."""
    first = job("first", before="say(found=1)", after="time.sleep(600)")
    reports, failures = ran(first, job("second", after="say(found=2)"), turns_s=2)
    assert reports == [("first", {"found": 1})]
    assert failures == {
        "first": "ended when the 2 s for all turns were over",
        "second": "not timed: the 2 s for all turns are over",
    }
