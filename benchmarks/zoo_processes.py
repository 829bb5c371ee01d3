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
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.evidence import REPOSITORY
from benchmarks.zoo_worker import try_model

__all__ = ["METHODS", "ZooProcesses"]

METHODS = ("forkserver", "spawn")
LONGEST_COMPLAINT = 600


class ZooProcesses:
    """Starts processes that try a model each.

    Args:
        method: "forkserver" forks them from a server that has loaded modules; "spawn" starts each from nothing.
        preloaded: the modules that the server imports.
    """

    def __init__(self, method: str, preloaded: Sequence[str]) -> None:
        self.context: Any = multiprocessing.get_context(method)
        self.context.set_forkserver_preload(list(preloaded))
        # multiprocessing looks after all its processes when it starts one. No other thread may do so meanwhile.
        self.lock = threading.Lock()

    def ask(self, name: str, backend: str, models: str, cores: str, limit_s: float) -> dict[str, Any]:
        """Try a model.

        Args:
            name: of the model.
            backend: "cpu" or "gpu".
            models: module with the entries.
            cores: numbers of the CPU cores to use, with commas.
            limit_s: seconds that it may take.

        Returns:
            its row; "outcome" is "timeout" after `limit_s`, or "crashed" if the process died.
        """
        with tempfile.TemporaryDirectory() as folder:
            prints = Path(folder) / "prints"
            receiver, sender = self.context.Pipe(duplex=False)
            process = self.context.Process(target=try_model, args=(name, backend, models, cores, sender, prints))
            with self.lock:
                process.start()
            sender.close()
            rows: list[dict[str, Any]] = [{"phase": "start", "outcome": "running", "seconds": {}}]
            is_late = not _receive_all(receiver, rows, time.monotonic() + limit_s)
            if is_late:
                _end(process)
                _receive_all(receiver, rows, None)
            receiver.close()
            with self.lock:
                process.join()
            row = rows[-1]
            if row["outcome"] != "running":
                return row
            if is_late:
                return {**row, "outcome": "timeout", "error": "", "message": f"no answer in {limit_s:g} s"}
            return {**row, "outcome": "crashed", "error": f"exit {process.exitcode}", "message": _complaint(prints)}


def _receive_all(receiver: Connection, rows: list[dict[str, Any]], deadline: float | None) -> bool:
    """Take a process's rows until it ends.

    Returns:
        False if the deadline came first.
    """
    while receiver.poll(None if deadline is None else max(deadline - time.monotonic(), 0)):
        try:
            rows.append(receiver.recv())
        except EOFError:
            return True
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
