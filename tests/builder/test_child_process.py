"""`torch2engine.builder.child_process`: a builder that crashes, is killed or prints is an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import onnx_models
from torch2engine.builder import child_process, child_watch
from torch2engine.builder.build import build
from torch2engine.builder.child_process import BuilderProcess, compile_in_child
from torch2engine.builder.child_watch import ChildWatch
from torch2engine.builder.load_or_build import build_environment, early_builder, load_or_build
from torch2engine.builder.plan import PlanRequest
from torch2engine.builder.source import make_build_source
from torch2engine.core import progress
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import BuildError, InputError, InstallationError
from torch2engine.core.progress import Reporter


@pytest.fixture
def request_for(tmp_path: Path) -> Iterator[Callable[[str], PlanRequest]]:
    """Requests to a pretended `tensorrt` package, whose code is run where it would be imported."""
    source = make_build_source(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, None)
    sys.path.insert(0, str(tmp_path))

    def make(code: str) -> PlanRequest:
        (tmp_path / "tensorrt.py").write_text(code)
        return PlanRequest(
            onnx_path=str(source.artifact.onnx_path),
            plan_path=str(tmp_path / "model.plan"),
            signature=source.signature,
            profiles=source.profiles,
            precision="fp32",
            flavour="tensorrt",
        )

    yield make
    sys.path.remove(str(tmp_path))


def failure(request: PlanRequest) -> BuildError:
    """The BuildError of a request."""
    with pytest.raises(BuildError) as caught:
        compile_in_child(request, lambda phase, step, steps: None)
    return caught.value


def test_a_crash_is_a_build_error_with_what_was_printed(request_for: Callable[[str], PlanRequest]) -> None:
    """A segmentation fault in TensorRT names the signal and quotes the last words."""
    error = failure(
        request_for("import os, signal\nos.write(1, b'last words\\n')\nos.kill(os.getpid(), signal.SIGSEGV)")
    )
    assert str(error) == (
        "TensorRT build: got the end of the builder process by SIGSEGV; expected a plan; build parts "
        "of the model to find the operation that TensorRT fails on, or use another TensorRT "
        "version\n  last words"
    )
    assert not error.out_of_memory


def test_a_kill_by_the_system_is_named_as_memory(request_for: Callable[[str], PlanRequest]) -> None:
    """SIGKILL is what the kernel sends when host memory runs out."""
    error = failure(request_for("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    assert str(error) == (
        "TensorRT build: got the end of the builder process by SIGKILL; expected a plan; the system "
        "kills what takes too much host memory: give it more"
    )
    assert error.out_of_memory


def test_an_exit_is_a_build_error_with_its_status(request_for: Callable[[str], PlanRequest]) -> None:
    """A library that ends the process takes nobody else along."""
    assert str(failure(request_for("import os\nos._exit(3)"))) == (
        "TensorRT build: got the end of the builder process with status 3; expected a plan; see the "
        "lines below for the cause"
    )


def test_an_unexpected_exception_arrives_with_its_traceback(request_for: Callable[[str], PlanRequest]) -> None:
    """A bug in the builder's process is told where it happened."""
    error = failure(request_for("raise KeyError('odd')"))
    assert str(error).startswith(
        "TensorRT build: got a failure of the builder process: KeyError: 'odd'; expected a plan; "
    )
    assert error.log[-1] == "KeyError: 'odd'"
    assert any("tensorrt.py" in line for line in error.log)


def test_host_memory_that_runs_out_is_named(request_for: Callable[[str], PlanRequest]) -> None:
    """MemoryError, which std::bad_alloc becomes, is out of memory."""
    error = failure(request_for("raise MemoryError('std::bad_alloc')"))
    assert error.out_of_memory
    assert str(error).startswith(
        "TensorRT build: got a builder process out of host memory; expected a plan; give it more host memory\n"
    )


def test_prints_do_not_disturb_the_answer(request_for: Callable[[str], PlanRequest]) -> None:
    """Whatever libraries write to stdout, the typed error still arrives, and nothing on the caller's terminal."""
    code = "import os, sys\nprint('{', flush=True)\nos.write(1, b'}{')\nraise OSError('no library')"
    with pytest.raises(InstallationError) as caught:
        compile_in_child(request_for(code), lambda phase, step, steps: None)
    assert str(caught.value).startswith("TensorRT: got tensorrt that can't be loaded: 'no library' (installed: ")


def test_prints_stay_off_the_terminal(
    request_for: Callable[[str], PlanRequest], capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorRT's own prints appear in errors alone."""
    failure(request_for("import os\nos.write(1, b'noise')\nos.write(2, b'noise')\nos._exit(3)"))
    assert capfd.readouterr() == ("", "")


def test_request_survives_the_way_to_the_child(request_for: Callable[[str], PlanRequest]) -> None:
    """Every field comes back as it went."""
    request = request_for("")
    assert PlanRequest.from_json(request.to_json()) == request


def test_no_interpreter_is_a_build_error(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python is embedded and has no executable the error says so."""
    monkeypatch.setattr(sys, "executable", "")
    assert str(failure(request_for(""))) == (
        "TensorRT build: got an empty sys.executable; expected the path of Python; build in a plain Python interpreter"
    )


def test_child_imports_nothing_from_the_working_directory(
    request_for: Callable[[str], PlanRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted modules run neither from there, nor from "" or a relative folder in sys.path."""
    request = request_for("raise KeyError('the right one')")
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("json", "os", "tensorrt", "numpy", "torch2engine"):
        (planted / f"{name}.py").write_text("import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()")
    monkeypatch.chdir(planted)
    monkeypatch.setenv("PYTHONPATH", str(planted))
    monkeypatch.setattr(sys, "path", ["", ".", "../planted", str(planted), *sys.path])
    assert failure(request).log[-1] == "KeyError: 'the right one'"
    assert list(planted.glob("*.ran")) == []


def test_odd_entries_of_the_path_do_not_stop_a_build(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Path works like a text; what Python skips is skipped."""
    request = request_for("raise KeyError('found')")
    entries: list[object] = [None, 1, *map(Path, sys.path)]
    monkeypatch.setattr(sys, "path", entries)
    assert failure(request).log[-1] == "KeyError: 'found'"


def test_half_a_line_is_no_event(request_for: Callable[[str], PlanRequest]) -> None:
    """A process that dies while it reports is a crash with its status."""
    code = "import os\nfor n in range(3, 20):\n  try: os.write(n, b'{')\n  except OSError: pass\nos._exit(4)"
    assert str(failure(request_for(code))).startswith(
        "TensorRT build: got the end of the builder process with status 4"
    )


def test_line_that_is_no_event_is_quoted(request_for: Callable[[str], PlanRequest]) -> None:
    """Whatever a library writes between the events, the error is typed."""
    code = "import os\nfor n in range(3, 20):\n  try: os.write(n, b'{\\n')\n  except OSError: pass\nos._exit(4)"
    assert str(failure(request_for(code))) == (
        "TensorRT build: got b'{' from the builder process; expected an event in JSON; build again"
    )


def test_step_that_runs_on_is_reported_again_and_can_be_cancelled(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that waits for ever is ended by its caller, who hears of the innermost step again and again."""
    code = """
import json, os, signal
phases = [["outer", 0, 2], ["inner", 0, 3], ["inner", 1, 3]]
events = b"".join(json.dumps({"phase": phase}).encode() + b"\\n" for phase in phases)
for number in range(3, 20):
    try: os.write(number, events)
    except OSError: pass
signal.pause()
"""
    monkeypatch.setattr(child_process, "_POLL_MS", 1)
    monkeypatch.setattr(progress, "_BEAT_S", 0.0)
    threads: set[int] = set()
    reports: list[tuple[str, int, int]] = []

    def hear(phase: str, step: int, steps: int, seconds: float) -> bool:
        threads.add(threading.get_ident())
        reports.append((phase, step, steps))
        return reports[-3:] != [("inner", 1, 3)] * 3

    with pytest.raises(BuildError, match="got False from progress in 'inner'"):
        compile_in_child(request_for(code), Reporter("build", hear))
    assert reports[0] == ("outer", 0, 2)
    assert threads == {threading.get_ident()}


def test_signal_without_a_name_is_told_by_its_number(request_for: Callable[[str], PlanRequest]) -> None:
    """Python names no real-time signals but the first and the last."""
    error = failure(request_for("import os, signal\nos.kill(os.getpid(), signal.SIGRTMIN + 1)"))
    assert "got the end of the builder process by signal 35;" in str(error)


def test_stopped_child_is_ended_and_named(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP would let its parent wait for ever."""
    monkeypatch.setattr(child_watch, "_STOPPED_LIMIT_S", 0.0)
    monkeypatch.setattr(child_process, "_POLL_MS", 10)
    error = failure(request_for("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"))
    assert re.fullmatch(
        r"TensorRT build: got a builder process \d+ that is stopped \(by SIGSTOP or a debugger\), for 0 s in the phase "
        r"'its start'; expected one that works; the process was ended: build again, and let nothing stop it",
        str(error),
    )


class Clock:
    """A clock of the test's own."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid


def test_hung_child_is_told_after_minutes_without_a_sign_of_life(sleeper: int) -> None:
    """Neither reports nor processor time for five minutes; a report makes them begin anew."""
    clock = Clock()
    watch = ChildWatch(sleeper, None, clock)
    watch.check()
    clock.now = 200.0
    watch.note_report("Computing profile costs")
    clock.now = 490.0
    watch.check()
    clock.now = 501.0
    with pytest.raises(BuildError, match="nor computes, for 300 s in the phase 'Computing profile costs'"):
        watch.check()


def test_child_that_computes_is_alive() -> None:
    """Processor time is a sign of life, whatever the time without a report."""
    clock = Clock()
    watch = ChildWatch(os.getpid(), None, clock)
    for now in (0.0, 301.0, 602.0):
        clock.now = now
        before = time.process_time()
        while time.process_time() < before + 0.03:  # some ticks of /proc
            pass
        watch.check()


def test_time_limit_ends_a_build_that_still_reports(sleeper: int) -> None:
    """It counts from the start, whatever the process does."""
    clock = Clock()
    watch = ChildWatch(sleeper, 10.0, clock)
    clock.now = 10.0
    watch.check()
    clock.now = 10.5
    watch.note_report("Parsing")
    with pytest.raises(BuildError) as caught:
        watch.check()
    assert str(caught.value) == (
        f"TensorRT build: got no plan after 10 s, in the phase 'Parsing' of process {sleeper}; expected a plan within "
        "BuildConfig.time_limit_s; allow more time with BuildConfig(time_limit_s=...), or None for no limit"
    )


def test_time_limit_is_an_option_and_no_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides whether there is an engine, not which."""
    monkeypatch.setattr(child_process, "_POLL_MS", 10)
    with pytest.raises(BuildError, match="no plan after 1e-06 s"):
        build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, config=BuildConfig(time_limit_s=1e-6))
    assert build_environment(BuildConfig(time_limit_s=1.0)) == build_environment(BuildConfig())
    with pytest.raises(InputError, match=r"BuildConfig.time_limit_s: got 0; expected a positive number of seconds"):
        BuildConfig(time_limit_s=0)


def silent(phase: str, step: int, steps: int) -> None:
    """A report that nobody reads."""


def test_early_process_loads_its_libraries_before_its_request(
    request_for: Callable[[str], PlanRequest], tmp_path: Path
) -> None:
    """What takes long to load is there when the request comes; a failure to load is told by the build alone."""
    told = tmp_path / "told"
    os.mkfifo(told)
    request = request_for(f"open({str(told)!r}, 'w').write('loads')\nraise OSError('no library')")
    with BuilderProcess("fp32", "tensorrt", is_early=True) as early:
        assert told.read_text() == "loads"  # waits for the process
        assert early.can_build(request)
        answers: list[str] = []
        reader = threading.Thread(target=lambda: answers.append(told.read_text()))  # it tries once more
        reader.start()
        with pytest.raises(InstallationError, match="tensorrt that can't be loaded: 'no library'"):
            compile_in_child(request, silent, early=early)
        reader.join()
        assert not early.can_build(request)
    assert answers == ["loads"]


def test_early_process_builds_as_any_other(tmp_path: Path) -> None:
    """It builds once; a second request gets a process of its own."""
    path = onnx_models.relu(tmp_path)
    with early_builder(None, BuildConfig()) as early:
        assert early.process is not None
        first = load_or_build(path, profiles={"batch": (1, 8, 32)}, early=early).artifact
        second = load_or_build(path, profiles={"batch": (1, 8, 32)}, early=early).artifact
    assert first.plan_sha256 == second.plan_sha256


def test_early_process_is_left_alone_where_it_can_not_build(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has died, or whose environment is no longer that of its parent."""
    request = request_for("import os\nos._exit(5)")
    with BuilderProcess("fp32", "tensorrt") as early:
        assert early.can_build(request)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert not early.can_build(request)
        monkeypatch.undo()
    with BuilderProcess("tf32", "tensorrt") as early:
        assert not early.can_build(request)
    with BuilderProcess("fp32", "tensorrt", is_early=True) as early:
        early.wait()
        assert not early.can_build(request)
        with pytest.raises(BuildError, match="the end of the builder process with status 5"):
            compile_in_child(request, silent, early=early)


def test_no_early_process_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build itself says what is missing."""
    monkeypatch.setattr(sys, "executable", "")
    with early_builder("tf32", BuildConfig()) as early:
        assert early.process is None


def test_work_is_done_while_the_child_builds(request_for: Callable[[str], PlanRequest], tmp_path: Path) -> None:
    """The child has its request by then, and needs nobody; its error comes after that of the work."""
    told = tmp_path / "told"
    os.mkfifo(told)
    request = request_for(f"open({str(told)!r}, 'w').write('works')\nraise KeyError('odd')")
    heard: list[str] = []
    with pytest.raises(BuildError, match="KeyError: 'odd'"):
        compile_in_child(request, silent, meanwhile=lambda: heard.append(told.read_text()))
    assert heard == ["works"]


def test_lines_arrive_one_by_one_however_they_were_sent() -> None:
    """A parent that is faster than its child sends two lines before the child has read one."""
    reading, writing = os.pipe()
    lines = child_process._Lines(reading)  # pyright: ignore[reportPrivateUsage]  # the child's side alone
    os.write(writing, b'{"kind": "kernels"}\n\nhal')
    assert [lines.read(), lines.read()] == [b'{"kind": "kernels"}', b""]
    os.write(writing, b"f\n")
    assert lines.read() == b"half"
    os.close(reading)
    os.close(writing)


def test_error_meanwhile_ends_the_child(request_for: Callable[[str], PlanRequest], tmp_path: Path) -> None:
    """It arrives as it is, and the process is gone."""
    told = tmp_path / "told"
    os.mkfifo(told)
    request = request_for(
        f"import os, signal\nopen({str(told)!r}, 'w').write(str(os.getpid()))\nsignal.pause()",
    )
    children: list[int] = []

    def fail() -> None:
        children.append(int(told.read_text()))
        raise ZeroDivisionError("of the work")

    with pytest.raises(ZeroDivisionError, match="of the work"):
        compile_in_child(request, silent, meanwhile=fail)
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)
