"""Whether a builder process still works.

Enters: the process id. Leaves: nothing, or a BuildError that says what the process does instead. Separate because the
process itself can't tell: it may be stopped or hang, and for minutes TensorRT lets it report nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch2engine.core.errors import BuildError

__all__ = ["ChildWatch"]

_STOPPED_LIMIT_S = 30.0
_IDLE_LIMIT_S = 300.0
_STOPPED_STATES = "Tt"  # by a signal, by a debugger


@dataclass(frozen=True)
class _ProcessState:
    """The state of a process, as Linux gives it in /proc/PID/stat (proc(5)).

    Args:
        letter: R for running, S and D for waiting, T and t for stopped, and more.
        cpu_ticks: processor time that all its threads have taken so far.
    """

    letter: str
    cpu_ticks: int


class ChildWatch:
    """Watches one process. Its reports and its processor time are signs of life.

    Args:
        process: its id.
        time_limit_s: the longest time that the process may take in all; None for no limit.
        clock: seconds that never go back.
    """

    def __init__(self, process: int, time_limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process
        self._time_limit_s = time_limit_s
        self._clock = clock
        self._start = clock()
        self._last_sign = self._start
        self._cpu_ticks = -1
        self._phase = "its start"

    def note_report(self, phase: str = "") -> None:
        """Take a report as a sign of life, and remember the phase that it names."""
        self._last_sign = self._clock()
        self._phase = phase or self._phase

    def check(self) -> None:
        """Look whether the process still works.

        Raises:
            BuildError: it has taken too long, is stopped, or has done nothing for minutes.
        """
        now = self._clock()
        if self._time_limit_s is not None and now - self._start > self._time_limit_s:
            raise BuildError(
                "TensorRT build",
                got=f"no plan after {self._time_limit_s:g} s, in the phase '{self._phase}' of process {self._process}",
                allowed="a plan within BuildConfig.time_limit_s",
                fix="allow more time with BuildConfig(time_limit_s=...), or None for no limit",
            )
        state = _process_state(self._process)
        if state is None:
            return
        if state.cpu_ticks != self._cpu_ticks:
            self._cpu_ticks = state.cpu_ticks
            self._last_sign = now
        is_stopped = state.letter in _STOPPED_STATES
        limit_s = _STOPPED_LIMIT_S if is_stopped else _IDLE_LIMIT_S
        if now - self._last_sign > limit_s:
            doing = "is stopped (by SIGSTOP or a debugger)" if is_stopped else "neither reports nor computes"
            raise BuildError(
                "TensorRT build",
                got=f"a builder process {self._process} that {doing}, for {limit_s:g} s in the phase '{self._phase}'",
                allowed="one that works",
                fix="the process was ended: build again" + (", and let nothing stop it" if is_stopped else ""),
            )


def _process_state(process: int) -> _ProcessState | None:
    """The state of a process; None where it can't be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{process}/stat", "rb") as file:
            # The command's name stands in parentheses and may hold some itself.
            fields = file.read().rpartition(b")")[2].split()
        return _ProcessState(os.fsdecode(fields[0]), int(fields[11]) + int(fields[12]))
    return None
