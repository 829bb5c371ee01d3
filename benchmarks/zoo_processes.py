"""The processes of a sweep over the zoo: each tries one model, and begins with the libraries that all of them need.

Enters: a model's name. Leaves: its row, whatever became of its process. Apart because a process that is forked from a
server saves what the imports take, which is longer than many a model takes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.evidence import REPOSITORY
from benchmarks.zoo_places import Place
from benchmarks.zoo_worker import TryEntry, row_of, try_model

__all__ = ["METHODS", "Limit", "ZooProcesses", "ended", "receive_all"]

METHODS = ("forkserver", "spawn")
LONGEST_COMPLAINT = 600


class ZooProcesses:
    """Starts processes that try a model each.

    Args:
        method: "forkserver" forks them from a server that has loaded modules; "spawn" starts each from nothing.
        preloaded: the modules that the server imports.
        try_entry: what a process does with its model.
    """

    def __init__(self, method: str, preloaded: Sequence[str], try_entry: TryEntry = row_of) -> None:
        self.try_entry = try_entry
        self.context: Any = multiprocessing.get_context(method)
        self.context.set_forkserver_preload(list(preloaded))
        # multiprocessing looks after all its processes when it starts one. No other thread may do so meanwhile.
        self.lock = threading.Lock()

    def ask(self, name: str, backend: str, models: str, place: Place, limit_s: float) -> dict[str, Any]:
        """Try a model.

        Args:
            name: of the model.
            backend: "cpu" or "gpu".
            models: module with the entries.
            place: where it runs.
            limit_s: seconds that it may take. A second try of a model that was refused may take twice as many.

        Returns:
            its row; "outcome" is "timeout" after `limit_s`, or "crashed" if the process died. If that happens in a
            second try, it is the outcome of "fallback".
        """
        with tempfile.TemporaryDirectory() as folder:
            prints = Path(folder) / "prints"
            receiver, sender = self.context.Pipe(duplex=False)
            process = self.context.Process(
                target=try_model, args=(self.try_entry, name, backend, models, place, sender, prints)
            )
            with self.lock:
                process.start()
            sender.close()
            rows: list[dict[str, Any]] = [{"phase": "start", "outcome": "running", "seconds": {}}]
            limit = Limit(limit_s)
            is_late = not receive_all(receiver, rows, limit)
            if is_late:
                _end(process)
                receive_all(receiver, rows, Limit(None))
            receiver.close()
            with self.lock:
                process.join()
            if is_late:
                return ended(rows[-1], "timeout", "", f"no answer in {limit.limit_s:g} s")
            return ended(rows[-1], "crashed", f"exit {process.exitcode}", _complaint(prints))


def ended(row: dict[str, Any], outcome: str, error: str, message: str) -> dict[str, Any]:
    """Give what a process was still trying its outcome.

    Args:
        row: the last one that the process sent.
        outcome, error, message: of what had no end.

    Returns:
        the row of the model.
    """
    end = {"outcome": outcome, "error": error, "message": message}
    if row["outcome"] == "running":
        return {**row, **end}
    if _is_second_try(row):
        return {**row, "fallback": {**row["fallback"], **end}}
    return row


def _is_second_try(row: dict[str, Any]) -> bool:
    """Tell whether a process was in a second try when it sent this row."""
    return "fallback" in row and row["fallback"]["outcome"] == "running"


class Limit:
    """The time that a process has left.

    Attributes:
        limit_s: the seconds of the present try.

    Args:
        limit_s: seconds for the first try; None for no limit. A second one gets twice as many when it begins, since
            torch.compile may make graphs of each size.
        clock: seconds, from any start.
    """

    def __init__(self, limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s, self._clock = limit_s, clock
        self._start = clock()
        self._is_second_try = False

    def begin_second_try(self) -> None:
        """Give the second try its time, when it begins; later calls change nothing."""
        if self.limit_s is not None and not self._is_second_try:
            self._is_second_try = True
            self.limit_s *= 2
            self._start = self._clock()

    def left_s(self) -> float | None:
        """The seconds that are left, at least 0; None for no limit."""
        return None if self.limit_s is None else max(self._start + self.limit_s - self._clock(), 0.0)


def receive_all(receiver: Connection, rows: list[dict[str, Any]], limit: Limit) -> bool:
    """Take a process's rows until it ends.

    Returns:
        False if the limit came first.
    """
    while receiver.poll(limit.left_s()):
        try:
            rows.append(receiver.recv())
        except EOFError:
            return True
        if _is_second_try(rows[-1]):
            limit.begin_second_try()
    return False


def _end(process: BaseProcess) -> None:
    """Kill a process and what it has started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):  # it leads no group yet, or has ended
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def _complaint(prints: Path) -> str:
    """The end of what a process printed."""
    printed = prints.read_text(encoding="utf-8", errors="replace") if prints.exists() else ""
    return printed.strip().replace(str(REPOSITORY), "")[-LONGEST_COMPLAINT:]
