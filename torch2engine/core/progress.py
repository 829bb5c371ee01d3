"""Progress of a long step, reported to a callable or drawn as a bar.

Enters: the `progress` argument of a public function. Leaves: one callable for the steps to report to. Separate
because every stage that takes minutes reports in the same form, and only this file draws.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, cast

from torch2engine.core.errors import BuildError, InputError

__all__ = ["Heartbeat", "PhaseReport", "Progress", "ProgressCallback", "Reporter", "is_shown", "reporting"]


_REDRAWN_PER_SECOND = 4
_BEAT_S = 1.0

PhaseReport: TypeAlias = Callable[[str, int, int], None]
"""Takes a phase, how many of its steps are done, and how many there are. What it raises ends the work."""


class ProgressCallback(Protocol):
    """A callable that takes reports.

    While TensorRT builds and no step ends, the last report comes again once a second, so that a build can be cancelled.

    Args:
        phase: the name of the work; a phase that begins before another one ends is inside it.
        step: how many steps of it are done; 0 when it begins, `steps` when it ends.
        steps: how many there are.
        seconds: time since the first phase began.

    Returns:
        False to cancel; anything else to go on.
    """

    def __call__(self, phase: str, step: int, steps: int, seconds: float, /) -> object: ...


Progress: TypeAlias = "ProgressCallback | bool | None"


@contextmanager
def reporting(progress: Progress) -> Generator[ProgressCallback | None, None, None]:
    """Give the callable that a `progress` argument means.

    Args:
        progress: a callable; True for a bar if standard error is a terminal; None or False for nothing.

    Raises:
        InputError: something else.
    """
    if progress is True and is_shown(progress):
        bar = _Bar()
        with bar.shown:
            yield bar
    elif progress is None or isinstance(progress, bool):
        yield None
    elif callable(cast("object", progress)):
        yield progress
    else:
        raise InputError(
            "progress",
            got=repr(progress),
            allowed="True, None or a callable",
            fix="e.g. progress=lambda phase, step, steps, seconds: None",
        )


def is_shown(progress: Progress) -> bool:
    """Whether anybody sees the reports: a callable, or the user of a terminal."""
    return sys.stderr.isatty() if progress is True else bool(progress)


class Reporter:
    """Reports the steps of a piece of work, with the seconds since this was made.

    Args:
        subject: the work, for the error.
        on_progress: takes the reports; None if nobody does.
        started: a value of time.monotonic(), from which the seconds count; None means now.
    """

    def __init__(self, subject: str, on_progress: ProgressCallback | None, started: float | None = None) -> None:
        self._subject = subject
        self._on_progress = on_progress
        self._started = time.monotonic() if started is None else started

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """Report one step.

        Raises:
            BuildError: the answer was to cancel.
        """
        if (
            self._on_progress is not None
            and self._on_progress(phase, step, steps, time.monotonic() - self._started) is False
        ):
            raise BuildError(
                self._subject,
                got=f"False from progress in '{phase}'",
                allowed="another value, since False cancels",
                fix="return None to go on",
                cancelled=True,
            )


class Heartbeat:
    """Repeats the report of the step that runs, where nothing else is reported for a second.

    Args:
        report: takes the reports.
        clock: seconds that never go back.
    """

    def __init__(self, report: PhaseReport, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._open: list[tuple[str, int, int]] = []  # the innermost phase last
        self._last = clock()

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """Hand a report on. A phase that ends takes those inside it along."""
        at = next((index for index, one in enumerate(self._open) if one[0] == phase), len(self._open))
        self._open[at:] = [] if step >= steps else [(phase, step, steps), *self._open[at + 1 :]]
        self._last = self._clock()
        self._report(phase, step, steps)

    def beat(self) -> None:
        """Repeat the report of the innermost open phase, if the last report is a second old."""
        if self._open and self._clock() - self._last >= _BEAT_S:
            self(*self._open[-1])


class _Bar:
    """A rich bar per open phase, indented by nesting, the outermost with the estimated time left.

    A thread of rich redraws the seconds of open phases, so that a phase without steps is seen to go on.

    Args:
        console: of rich, where it draws; None for standard error.
        clock: gives seconds; None for the time since the process began.
    """

    def __init__(self, console: Any = None, clock: Callable[[], float] | None = None) -> None:
        # rich is loaded only for a bar
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = console or Console(stderr=True)
        self.shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=_REDRAWN_PER_SECOND,
            get_time=clock,
            redirect_stdout=False,  # what the user's model prints stays where it goes
        )
        self._open: list[_Phase] = []

    def __call__(self, phase: str, step: int, steps: int, seconds: float, /) -> None:
        at = next((index for index, one in enumerate(self._open) if one.name == phase), None)
        if at is None:
            at = len(self._open)
            task = self.shown.add_task("  " * at + phase, total=1.0)
            self._open.append(_Phase(phase, step, steps, task))
        self._open[at].step = step
        self._open[at].steps = steps
        if step >= steps:
            for inner in self._open[at:]:
                self.shown.remove_task(inner.task)
            del self._open[at:]
        self._draw()

    def _draw(self) -> None:
        inner = 0.0
        for one in reversed(self._open):
            # A step under way counts as far as the phases inside it are; a bar never runs backwards.
            one.done = max(one.done, min(1.0, (one.step + inner) / max(one.steps, 1)))
            inner = one.done
            self.shown.update(one.task, completed=one.done)


class _Phase:
    """An open phase and how far it is, from 0 to 1."""

    def __init__(self, name: str, step: int, steps: int, task: Any) -> None:
        self.name = name
        self.step = step
        self.steps = steps
        self.task = task
        self.done = 0.0
