"""A lock that a fork can't leave locked, and that threads of one process share all the same."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from torch2engine.core.fork_safe_lock import ForkSafeLock


@pytest.mark.parametrize("reentrant", [False, True])
def test_threads_exclude_each_other(reentrant: bool) -> None:
    """No two threads are inside at once."""
    lock = ForkSafeLock(reentrant)
    inside: list[int] = []
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait()
        for _ in range(50):
            with lock:
                inside.append(number)
                assert inside == [number]
                inside.clear()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_fork_finds_a_lock_free_that_a_thread_of_its_parent_holds(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process id is another lock, so that nobody waits for a thread that does not exist."""
    lock = ForkSafeLock(reentrant)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    process = os.getpid()
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: process + 1)
        with lock:
            assert not free.is_set()
    free.set()
    thread.join()
