"""Processes that all prepare at the same time, and then are timed one after another.

Enters: commands. Leaves: what each reported, and why another one failed. Apart because preparing takes minutes of many
CPU cores, while only one process at a time may be timed on a GPU, and nobody else may work then.

A job prints `PREPARED` when it is ready, and waits for a line on its standard input; then it is timed. For each thing
that it has found, before or after, it prints a line that begins with `REPORT` and holds JSON. With `DONE` it asks to be
ended at once: libraries take seconds to end in order, and meanwhile the next job would have to wait. What else it
prints is ignored.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.evidence import REPOSITORY

__all__ = [
    "DONE",
    "PREPARED",
    "REPORT",
    "Job",
    "Turn",
    "environment_of",
    "run_jobs",
    "say",
    "say_done",
    "wait_for_turn",
]

PREPARED = "@prepared"
DONE = "@done"
REPORT = "@report "
_GO = "go"
_SHOWN = 1500  # characters of a failed job's last words


def wait_for_turn() -> None:
    """In a job: say that all is prepared, and wait until it is this job's turn.

    Raises:
        SystemExit: the parent gave up.
    """
    print(f"\n{PREPARED}", flush=True)
    if sys.stdin.readline().strip() != _GO:
        sys.exit("nobody gave this process its turn")


class Turn:
    """In a job: its turn to be timed, which is waited for once, wherever the first measurement is.

    Args:
        wait: `wait_for_turn`, or what stands for it where nobody else is timed.
    """

    def __init__(self, wait: Callable[[], object] = wait_for_turn) -> None:
        self._wait = wait
        self._has_come = False

    def wait(self) -> None:
        """Wait for the turn, if it has not come yet."""
        if not self._has_come:
            self._wait()
            self._has_come = True


def say(report: Mapping[str, Any]) -> None:
    """In a job: report something, as JSON values."""
    print(f"\n{REPORT}{json.dumps(report)}", flush=True)


def say_done() -> None:
    """In a job: say that all is reported. The process is killed now."""
    print(f"\n{DONE}", flush=True)


@dataclass(frozen=True)
class Job:
    """A process.

    Args:
        name: for the caller.
        command: its words; it runs in the repository's folder.
        place: jobs of one place are timed one after another, in the order in which they are given.
        environment: variables besides this process's own.
    """

    name: str
    command: Sequence[str]
    place: str = ""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def environment_of(device: str, threads: int, library: Path | None = None) -> dict[str, str]:
    """A job's environment on one GPU.

    Args:
        device: as CUDA_VISIBLE_DEVICES names it.
        threads: of each pool that computes or compiles on the CPU.
        library: a folder of packages for this job alone.
    """
    found = {
        "CUDA_VISIBLE_DEVICES": device,
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
    if library is not None:
        paths = (str(library.expanduser().resolve()), os.environ.get("PYTHONPATH", ""))
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


class JobError(Exception):
    """A job has failed, or took too long."""


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    prepare_s: float,
    time_s: float,
    take: Callable[[Job, Mapping[str, Any]], object],
    turns_s: float = math.inf,
) -> dict[str, str]:
    """Run every job.

    Args:
        jobs: in the order in which they begin.
        workers: how many prepare at a time. Those that are ready wait until none prepares any more.
        prepare_s: seconds that all jobs together may take to prepare; a job that is not ready then is ended.
        time_s: seconds that one job may take after its turn has come.
        take: is given each report at once, by one thread at a time.
        turns_s: seconds for all turns, from when all are prepared; a job that is not through then is ended, or not
            timed.

    Returns:
        {name: why it failed}, for those that did.
    """
    run = _Run(jobs, workers, prepare_s, time_s, take, turns_s)
    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        failures = dict(zip((job.name for job in jobs), pool.map(run.outcome, jobs), strict=True))
    return {name: failure for name, failure in failures.items() if failure}


class _Run:
    """What the threads of one `run_jobs` share; its arguments are those."""

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        prepare_s: float,
        time_s: float,
        take: Callable[[Job, Mapping[str, Any]], object],
        turns_s: float,
    ) -> None:
        self.prepare_s = prepare_s
        self.time_s = time_s
        self.turns_s = turns_s
        self.take = take
        self.started = self.prepared = time.monotonic()
        self.slots = threading.Semaphore(workers)
        self.preparing = len(jobs)
        self.change = threading.Condition()
        self.queues: dict[str, list[str]] = {}  # place -> the names of jobs that are not through, the next one first
        for job in jobs:
            self.queues.setdefault(job.place, []).append(job.name)
        self.reports = threading.Lock()

    def outcome(self, job: Job) -> str:
        """Why a job failed; "" if it did not."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            try:
                with self._prepared(job, errors) as process:
                    with self.change:
                        self.change.wait_for(lambda: not self.preparing and self.queues[job.place][0] == job.name)
                    self._time(job, process)
            except JobError as error:
                errors.seek(0)
                return f"{error}\n{errors.read()[-_SHOWN:]}".strip()
            finally:
                with self.change:
                    self.queues[job.place].remove(job.name)
                    self.change.notify_all()
        return ""

    @contextmanager
    def _prepared(self, job: Job, errors: IO[str]) -> Generator[subprocess.Popen[str]]:
        """A process that waits for its turn. It is ended at last, with all that it started.

        Raises:
            JobError: it is not ready in time.
        """
        process: subprocess.Popen[str] | None = None
        try:
            try:
                with self.slots:
                    left_s = self.started + self.prepare_s - time.monotonic()
                    if left_s <= 0:
                        raise JobError(f"not begun: the {self.prepare_s:g} s of preparation are over")
                    process = _started(job, errors)
                    with _killed_after(process, left_s, f"not ready after {self.prepare_s:g} s of preparation"):
                        if not any(line.strip() == PREPARED for line in self._lines(job, process)):
                            raise JobError(f"ended with {process.wait()} before it was ready")
            finally:
                with self.change:
                    self.preparing -= 1
                    self.prepared = time.monotonic()  # at last, when all are
                    self.change.notify_all()
            yield process
        finally:
            if process is not None:
                _kill(process)
                process.communicate()

    def _time(self, job: Job, process: subprocess.Popen[str]) -> None:
        """Give a job its turn, and hand on what it reports.

        Raises:
            JobError: it ends with another status than 0, or not in time.
        """
        assert process.stdin is not None
        left_s = self.prepared + self.turns_s - time.monotonic()
        if left_s <= 0:
            raise JobError(f"not timed: the {self.turns_s:g} s for all turns are over")
        late = f"no end {self.time_s:g} s after its turn came"
        if left_s < self.time_s:
            late = f"ended when the {self.turns_s:g} s for all turns were over"
        with _killed_after(process, min(left_s, self.time_s), late):
            with suppress(BrokenPipeError):  # it has ended meanwhile: its status says how
                process.stdin.write(f"{_GO}\n")
                process.stdin.flush()
            is_done = any(line.strip() == DONE for line in self._lines(job, process))
            if is_done:
                _kill(process)
            if process.wait() and not is_done:
                raise JobError(f"ended with {process.returncode}")

    def _lines(self, job: Job, process: subprocess.Popen[str]) -> Iterator[str]:
        """What a job prints; its reports are handed on, and left out."""
        assert process.stdout is not None
        for line in iter(process.stdout.readline, ""):
            if line.startswith(REPORT):
                with self.reports:
                    self.take(job, json.loads(line.removeprefix(REPORT)))
            else:
                yield line


def _started(job: Job, errors: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        job.command,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
        env={**os.environ, **job.environment},
        start_new_session=True,  # so that its own processes end with it
    )


@contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float, reason: str) -> Generator[None]:
    """End a process if the block takes longer.

    Raises:
        JobError: it did, with the reason.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    except JobError as error:
        raise (JobError(reason) if late.is_set() else error) from None
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
