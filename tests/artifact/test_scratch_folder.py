"""Scratch folders go by themselves, however their processes end, and only those that nobody uses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError

HOLD = (
    # Under nohup, a process would inherit that it ignores SIGHUP.
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
    "from torch2engine.artifact.scratch_folder import scratch_folder; owner = scratch_folder();"
    "(owner.path / 'file').touch(); print(owner.path, flush=True); sys.stdin.read()"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, of this test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def holder() -> subprocess.Popen[str]:
    """A process that holds a scratch folder."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_folders_of_killed_processes_are_swept_and_no_others(place: Path) -> None:
    """SIGTERM, SIGHUP and SIGKILL run no exit handler: the next process that needs a folder removes what they left."""
    processes = [holder() for _ in range(4)]
    paths: list[str] = []
    for process in processes:
        assert process.stdout is not None
        paths.append(process.stdout.readline().strip())
    for process, number in zip(processes, (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL), strict=False):
        process.send_signal(number)
        process.communicate()
    (place / "torch2engine-scratch-mine").symlink_to(place / "theirs")
    (place / "theirs").mkdir()
    shared = place / "torch2engine-scratch-shared"
    shared.mkdir()
    shared.chmod(0o777)  # not made by torch2engine, which lets nobody else write
    assert all(map(os.path.isdir, paths))
    with scratch_folder():
        left = sorted(entry.name for entry in place.iterdir() if not entry.is_symlink())
        assert [os.path.isdir(path) for path in paths] == [False, False, False, True]
        assert len(left) == 4  # this one, the living process's, the shared one, theirs
    processes[3].communicate("")
    assert not os.path.exists(paths[3])
    assert sorted(entry.name for entry in place.iterdir()) == [
        "theirs",
        "torch2engine-scratch-mine",
        "torch2engine-scratch-shared",
    ]


def hold_one() -> None:
    hold_one.owner = scratch_folder()  # type: ignore[attr-defined]  # alive until the process ends


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_of_multiprocessing_leaves_no_folder(method: str, place: Path) -> None:
    """It ends without Python's exit handlers, but with those of multiprocessing."""
    process = get_context(method).Process(target=hold_one)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(place.iterdir()) == []


def test_folder_goes_with_the_body_of_a_with(place: Path) -> None:
    """So it does after an error; a full disk is told with the cure."""
    with pytest.raises(ArtifactError, match=r"scratch folder: got .*No space left.*; point TMPDIR"), scratch_folder():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="read error"), scratch_folder():
        raise OSError(errno.EIO, "read error")
    assert list(place.iterdir()) == []


def test_temporary_folder_that_is_not_utf8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX and TensorRT take no such path, so it is refused before they see it."""
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)
    monkeypatch.setattr("tempfile.tempdir", os.fsdecode(odd))
    with pytest.raises(ArtifactError, match=r"scratch folder: got .*surrogates not allowed.*; point TMPDIR"):
        scratch_folder()
    assert os.listdir(odd) == []
