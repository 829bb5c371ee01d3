"""`torch2engine.core.progress`: what a `progress` argument means, and the bar on a terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from torch2engine.core.errors import InputError
from torch2engine.core.progress import Heartbeat, _Bar, reporting


def terminal() -> tuple[Console, io.StringIO]:
    """A terminal that remembers what was drawn on it."""
    drawn = io.StringIO()
    return Console(file=drawn, force_terminal=True, width=120, color_system=None), drawn


def test_reporting_hands_a_callable_through() -> None:
    """A user's callable is called as it is, its answer included."""

    def mine(phase: str, step: int, steps: int, seconds: float) -> bool:
        return False

    with reporting(mine) as report:
        assert report is mine


def test_heartbeat_repeats_the_innermost_open_step_once_a_second() -> None:
    """Never the end of a phase, nothing before the first one and after the last, and no beat soon after a report."""
    now = 0.0
    heard: list[tuple[str, int, int]] = []
    heartbeat = Heartbeat(lambda *report: heard.append(report), lambda: now)

    def heard_after(seconds: float) -> list[tuple[str, int, int]]:
        nonlocal now
        now += seconds
        heard.clear()
        heartbeat.beat()
        return list(heard)

    assert heard_after(5.0) == []
    heartbeat("outer", 0, 2)
    assert heard_after(0.9) == []
    heartbeat("inner", 1, 4)
    assert heard_after(0.9) == []
    assert heard_after(0.1) == [("inner", 1, 4)]
    assert heard_after(0.5) == []
    heartbeat("outer", 1, 2)  # the inner one goes on
    assert heard_after(1.0) == [("inner", 1, 4)]
    heartbeat("inner", 4, 4)
    assert heard_after(1.0) == [("outer", 1, 2)]
    heartbeat("inner", 0, 4)
    heartbeat("outer", 2, 2)  # which takes the inner one along
    assert heard_after(1.0) == []


@pytest.mark.parametrize("nothing", [None, False])
def test_reporting_gives_none_where_nothing_is_wanted(nothing: bool | None) -> None:
    """Without progress nobody is asked to report."""
    with reporting(nothing) as report:
        assert report is None


def test_reporting_shows_a_bar_on_a_terminal_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """True gives the bar there; False gives nothing, on a terminal too."""
    monkeypatch.setattr("torch2engine.core.progress.is_shown", lambda progress: True)
    with reporting(True) as report:
        assert isinstance(report, _Bar)
    with reporting(False) as report:
        assert report is None


def test_reporting_refuses_what_it_cannot_call() -> None:
    """The message shows what a callable looks like."""
    with pytest.raises(InputError) as caught, reporting("yes"):  # type: ignore[arg-type]
        pass
    assert str(caught.value) == (
        "progress: got 'yes'; expected True, None or a callable; e.g. progress=lambda phase, step, steps, seconds: None"
    )


def test_bar_draws_nothing_where_stderr_is_no_terminal() -> None:
    """Logs and pipes stay clean."""
    code = (
        "import sys\n"
        "from torch2engine.core.progress import is_shown, reporting\n"
        "with reporting(True) as report:\n"
        "    assert report is None and not is_shown(True) and 'rich' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_bar_is_drawn_on_a_terminal() -> None:
    """Standard error on a terminal gets the phases, and standard output nothing."""
    master, slave = os.openpty()
    code = (
        "from torch2engine.core.progress import reporting\n"
        "with reporting(True) as report:\n"
        "    report('export', 0, 1, 0.0); report('export', 1, 1, 0.1)\n"
    )
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave, env=environment, check=True
    )
    os.close(slave)
    drawn = os.read(master, 1 << 16)
    os.close(master)
    assert done.stdout == b""
    assert b"export" in drawn


def test_bar_shows_open_phases_indented() -> None:
    """A phase inside another one stands below it."""
    console, drawn = terminal()
    bar = _Bar(console)
    with bar.shown:
        bar("Building engine", 0, 4, 0.0)
        bar("Optimizing graph", 0, 2, 0.0)
        bar.shown.refresh()
        assert [task.description for task in bar.shown.tasks] == ["Building engine", "  Optimizing graph"]
        bar("Optimizing graph", 2, 2, 0.1)
        assert [task.description for task in bar.shown.tasks] == ["Building engine"]
        bar("Building engine", 4, 4, 0.1)
        assert not bar.shown.tasks
    assert "  Optimizing graph" in drawn.getvalue()


def test_bar_counts_inner_phases_into_outer_ones() -> None:
    """A step under way moves the outer bar, from which the time left is estimated."""
    console, _ = terminal()
    bar = _Bar(console)
    bar("outer", 0, 4, 0.0)
    bar("outer", 1, 4, 0.0)
    bar("inner", 0, 2, 0.0)
    bar("inner", 1, 2, 0.0)
    outer, inner = bar.shown.tasks
    assert (outer.completed, inner.completed) == (0.375, 0.5)


def test_bar_never_runs_backwards() -> None:
    """A phase that begins again, or ends early, doesn't take progress back."""
    console, _ = terminal()
    bar = _Bar(console)
    bar("outer", 0, 2, 0.0)
    bar("inner", 1, 2, 0.0)
    bar("inner", 2, 2, 0.0)
    bar("inner", 0, 2, 0.0)
    assert bar.shown.tasks[0].completed == 0.25


def test_bar_closes_what_lies_in_a_phase_that_ends() -> None:
    """A phase that ends takes its unfinished inner phases along."""
    console, _ = terminal()
    bar = _Bar(console)
    bar("outer", 0, 2, 0.0)
    bar("middle", 0, 2, 0.0)
    bar("inner", 0, 2, 0.0)
    bar("middle", 2, 2, 0.0)
    assert [task.description for task in bar.shown.tasks] == ["outer"]


def test_bar_shows_that_a_phase_without_steps_goes_on() -> None:
    """An export of a minute reports nothing inside; its seconds are redrawn all the same, four times a second."""
    clock = [0.0]
    console, drawn = terminal()
    bar = _Bar(console, lambda: clock[-1])
    bar("export", 0, 1, 0.0)
    for now in (1.0, 4.0, 59.0):
        clock.append(now)
        console.print(bar.shown)
    assert re.findall(r"0:00:\d\d", drawn.getvalue()) == ["0:00:01", "0:00:04", "0:00:59"]
    assert bar.shown.live.auto_refresh and bar.shown.live.refresh_per_second >= 1
