"""A lock file that names its holder, and shows that the holder is alive.

Enters: an open file that processes share. Leaves: the lock, or a BuildError that names a holder which does nothing.
Separate because the system's own lock does not show whether its holder hangs.

The holder writes its process and machine into the file, and touches the file every few seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from torch2engine.core.errors import BuildError

__all__ = ["build_lock"]

_POLL_S = 0.1
_BEAT_S = 5.0
_SILENCE_LIMIT_S = 60.0


@contextlib.contextmanager
def build_lock(descriptor: int, place: Path, waiting: Callable[[], object]) -> Generator[None]:
    """Hold the lock while the body runs. On a file system without locks the body runs all the same.

    Args:
        descriptor: the lock file, open for reading and writing.
        place: its path; it is removed in the end.
        waiting: called ten times a second while another process holds the lock. An exception from it ends the wait.

    Raises:
        BuildError: the holder has given no sign of life for a minute.
    """
    if not _acquire(descriptor, place, waiting):
        yield
        return
    done = threading.Event()
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    beat = threading.Thread(target=_beat, args=(descriptor, done), name="torch2engine lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        with contextlib.suppress(OSError):
            place.unlink()  # waiting processes go on, and new ones find the entry
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile would keep it after a mere close


def _acquire(descriptor: int, place: Path, waiting: Callable[[], object]) -> bool:
    """Wait for the lock; False where the file system has none."""
    last_beat = -1
    last_change = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            waiting()
        except OSError:
            return False
        # A change of the time counts, not the time: the holder's machine may have another clock.
        beat = os.fstat(descriptor).st_mtime_ns
        if beat != last_beat:
            last_beat = beat
            last_change = time.monotonic()
        elif time.monotonic() - last_change > _SILENCE_LIMIT_S and (holder := _holder(descriptor)):
            number = holder.split()[1]
            raise BuildError(
                f"engine cache '{place.parent.parent}'",
                got=f"the lock of an engine that {holder} holds, without a sign of life for {_SILENCE_LIMIT_S:g} s",
                allowed="a process that builds the engine and lets go",
                fix=f"end that process, e.g. kill -9 {number}, or pass cache=False",
            )
        time.sleep(_POLL_S)


def _holder(descriptor: int) -> str:
    """Who holds the lock, e.g. "process 12 on host"; "" for a version of torch2engine that does not say."""
    words = os.pread(descriptor, 200, 0).decode(errors="replace").split("\n")[0]
    return words if words.startswith("process ") else ""


def _beat(descriptor: int, done: threading.Event) -> None:
    while not done.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
