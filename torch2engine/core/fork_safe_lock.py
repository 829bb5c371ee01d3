"""A lock that a fork can't leave locked.

Enters: nothing. Leaves: a lock for `with`. Separate because a forked child inherits every lock in the state of the
fork: one that another thread held then is never released there, since that thread does not exist in the child.
"""

from __future__ import annotations

import os
import threading

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """A mutual exclusion of the threads of each process; a forked child starts with it free.

    What the lock protects may be half done in a child. So a body writes its result in one last assignment.

    >>> with ForkSafeLock():
    ...     pass
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())  # one step, which threads can't interleave

    def __enter__(self) -> None:
        self._lock().acquire()

    def __exit__(self, *error: object) -> None:
        self._lock().release()
