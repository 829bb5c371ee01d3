"""`build` when it is interrupted, killed or fails: nothing goes on, nothing stays behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import onnx_models

SLOW_BUILD = """
import json, signal, sys
from torch2engine.builder.build import build

# A shell that starts things in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def report(phase, step, steps, seconds):
    print(phase, flush=True)

if sys.argv[3] == "patient":
    signal.signal(signal.SIGINT, lambda number, frame: None)
    print("Computing profile costs", flush=True)
    report = None
build(sys.argv[1], json.loads(sys.argv[2]), progress=report)
print("finished", flush=True)
"""


def start_slow_build(tmp_path: Path, scratch: Path, layers: int = 200, manner: str = "plain") -> subprocess.Popen[str]:
    """A build of some seconds in a process of its own, in the phase in which TensorRT answers nothing."""
    scratch.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW_BUILD,
            str(onnx_models.deep(tmp_path, layers)),
            json.dumps(onnx_models.DEEP_RANGES),
            manner,
        ],
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,  # a process group of its own, which a terminal's Ctrl-C goes to
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.strip() == "Computing profile costs" for line in process.stdout), process.stderr
    return process


def test_ctrl_c_ends_a_build_promptly_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT amid a long phase is a KeyboardInterrupt before the next phase, and no file or process stays."""
    scratch = tmp_path / "scratch"
    process = start_slow_build(tmp_path, scratch)
    assert os.listdir(scratch), "the build should be at work"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert set(out.splitlines()) <= {"Computing profile costs"}
    assert os.listdir(scratch) == []
    assert not users_of(scratch)


def test_ctrl_c_that_the_application_handles_does_not_end_the_build(tmp_path: Path) -> None:
    """An application with a SIGINT handler of its own decides; the builder's process does not hear the terminal."""
    process = start_slow_build(tmp_path, tmp_path / "scratch", layers=80, manner="patient")
    for _ in range(50):  # some find the builder's process starting, some parsing, some building
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate()
    assert (out.splitlines()[-1], err) == ("finished", "")


def test_a_killed_parent_takes_its_builder_along(tmp_path: Path) -> None:
    """Whatever happens to the process that asked, no builder goes on without it."""
    scratch = tmp_path / "scratch"
    process = start_slow_build(tmp_path, scratch, layers=300)
    builders = [os.pidfd_open(int(user)) for user in users_of(scratch) if int(user) != process.pid]
    assert len(builders) == 1
    process.kill()
    process.communicate()
    select.select(builders, [], [])  # returns when the builder has ended
    os.close(builders[0])
    assert not users_of(scratch)


def users_of(scratch: Path) -> list[str]:
    """The processes whose TMPDIR is that folder."""
    found: list[str] = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={scratch}".encode() in environment.read_bytes().split(b"\0"):
                found.append(environment.parent.name)
        except OSError:
            continue
    return found


def test_a_failed_build_leaves_nothing_on_disk(tmp_path: Path) -> None:
    """The scratch folders of a build that raised are gone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import sys\nfrom torch2engine.builder.build import build\n"
        "try:\n    build(sys.argv[1], {'batch': (1, 2, 4)})\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
        "import os; print(os.listdir(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(onnx_models.unsupported(tmp_path)), str(scratch)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UnsupportedOperatorError", "[]"]
