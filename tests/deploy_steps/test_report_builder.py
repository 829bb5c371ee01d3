"""`torch2engine.deploy_steps.report_builder`: collects what a deploy finds, and times its phases."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.parity_tables import table
from torch2engine.core.errors import BuildError
from torch2engine.core.finding import Finding
from torch2engine.core.precision_outcome import PrecisionOutcome
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.deploy_steps.report_builder import ReportBuilder


def test_phases_measure_their_bodies_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase has its own seconds, in the order in which they began."""
    ticks = iter([1.0, 3.5, 4.0, 4.25])
    monkeypatch.setattr("torch2engine.deploy_steps.report_builder.time.perf_counter", lambda: next(ticks))
    builder = ReportBuilder()
    with builder.phase("first"):
        pass
    with builder.phase("second"):
        pass
    builder.add_parity(table("a vs b"))
    builder.add_notes(["n"])
    report = builder.build("fp32", 5)
    assert list(report.seconds.items()) == [("first", 2.5), ("second", 0.25)]
    assert (report.precision, report.notes, report.memory_bytes) == ("fp32", ("n",), 5)


def test_phase_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are not those of the outer phase, also after an error and with a third phase inside."""
    ticks = iter([1.0, 2.0, 5.0, 5.5, 6.0, 7.0, 9.0, 10.0])
    monkeypatch.setattr("torch2engine.deploy_steps.report_builder.time.perf_counter", lambda: next(ticks))
    builder = ReportBuilder()
    with builder.phase("build"):
        with pytest.raises(KeyError), builder.phase("check"):
            raise KeyError
        with builder.phase("outer"), builder.phase("inner"):
            pass
    assert builder.build("fp32").seconds == {"check": 3.0, "inner": 1.0, "outer": 2.5, "build": 2.5}


def test_phases_count_a_body_that_fails() -> None:
    """The time until an error is time too."""
    builder = ReportBuilder()
    with pytest.raises(KeyError), builder.phase("broken"):
        raise KeyError
    assert list(builder.build("fp32").seconds) == ["broken"]


def test_report_does_not_change_afterwards() -> None:
    """A report that was handed out is a value; later phases don't reach it."""
    builder = ReportBuilder()
    with builder.phase("one"):
        pass
    report = builder.build("fp32")
    with builder.phase("two"):
        pass
    assert list(report.seconds) == ["one"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.precision = "fp16"  # type: ignore[misc]


def test_phase_that_does_not_happen_leaves_no_trace() -> None:
    """Its body runs all the same."""
    builder = ReportBuilder()
    ran: list[int] = []
    with builder.phase("precision", is_reported=False):
        ran.append(1)
    assert ran == [1]
    assert builder.build("fp32").seconds == {}


def test_findings_of_an_earlier_deploy_say_whether_the_graph_was_lowered() -> None:
    """A float32 engine has none; what a lowered one has is in the report of the deploy that reuses it."""
    lowered, plain = ReportBuilder(), ReportBuilder()
    outcome = PrecisionOutcome(dtype="fp16", nodes=3, low=2)
    lowered.add_reusable_findings({"outcome": outcome.to_json(), "computed": None, "notes": []})
    plain.add_reusable_findings({"outcome": None, "computed": None, "notes": []})
    assert (lowered.is_lowered, plain.is_lowered, ReportBuilder().is_lowered) == (True, False, False)
    assert lowered.reusable_findings()["outcome"] == outcome.to_json()
    assert (lowered.build("fp16").lowering, plain.build("fp32").lowering) == (outcome, None)


def test_copy_of_a_builder_goes_its_own_way() -> None:
    """What a failed attempt adds to a copy is not in the report."""
    builder = ReportBuilder()
    builder.add_notes(["one"])
    builder.add_parity(table("a vs b"))
    with builder.phase("capture"):
        pass
    attempt = builder.copy()
    attempt.add_notes(["two"])
    attempt.add_parity(table("a vs c"))
    attempt.add_reusable_findings({"outcome": None, "computed": PrecisionReport((), {}).to_json(), "notes": ["three"]})
    with attempt.phase("parity"):
        pass
    report = builder.build("fp32")
    assert (report.notes, len(report.parity), list(report.seconds), report.computed) == (("one",), 1, ["capture"], None)
    other = attempt.build("fp32")
    assert (other.notes, len(other.parity), list(other.seconds)) == (("one", "two", "three"), 2, ["capture", "parity"])


def test_phases_are_reported_with_the_steps_inside_them() -> None:
    """A phase begins and ends; what is reported meanwhile goes to the same callable, and the clock is one."""
    events: list[tuple[str, int, int]] = []
    seconds: list[float] = []

    def listen(phase: str, step: int, steps: int, since_start: float) -> None:
        events.append((phase, step, steps))
        seconds.append(since_start)

    builder = ReportBuilder(listen)
    forward = builder.progress
    assert forward is not None
    with builder.phase("export"):
        pass
    with builder.phase("build"):
        forward("optimizing", 1, 4, 0.5)
        with builder.copy().phase("parity"):
            pass
    with builder.phase("precision", is_reported=False):
        pass
    assert events == [
        ("export", 0, 1),
        ("export", 1, 1),
        ("build", 0, 1),
        ("optimizing", 1, 4),
        ("parity", 0, 1),
        ("parity", 1, 1),
        ("build", 1, 1),
    ]
    assert seconds[0] <= seconds[1] <= seconds[2] <= seconds[-1]
    assert list(builder.build("fp32").seconds) == ["export", "build"]


@pytest.mark.parametrize("progress", [None, False, True])
def test_nobody_is_told_where_nobody_looks(progress: bool | None) -> None:
    """Without a callable, and without a terminal, the builder of engines reports nothing either."""
    assert ReportBuilder(progress).progress is None


def test_false_cancels_at_the_next_phase() -> None:
    """The error names the phase, and how to go on."""
    builder = ReportBuilder(lambda phase, step, steps, seconds: phase != "check")
    with builder.phase("export"):
        pass
    with pytest.raises(BuildError) as caught, builder.phase("check"):
        pass
    assert str(caught.value) == (
        "deploy: got False from progress in 'check'; expected another value, since False cancels; return None to go on"
    )


def test_seconds_of_a_phase_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """INFO on the logger torch2engine.deploy tells how far a deploy is."""
    with caplog.at_level("INFO", logger="torch2engine.deploy"), ReportBuilder().phase("export"):
        pass
    assert caplog.messages == ["export: 0.0 s"]


def test_findings_of_an_engine_are_stored_for_later_deploys() -> None:
    """A later deploy that takes the engine has them without a look at it; a record of an older version has none."""
    found = Finding(name="wide profile", measured="m", why="w", suggestion="s")
    facts = {"outcome": None, "computed": None, "notes": [], "findings": [found.to_json()]}
    later = ReportBuilder()
    later.add_reusable_findings(facts)
    assert later.build("fp32").findings == (found,)
    assert later.reusable_findings() == facts
    older = ReportBuilder()
    older.add_reusable_findings({"outcome": None, "computed": None, "notes": []})
    assert older.build("fp32").findings == ()
