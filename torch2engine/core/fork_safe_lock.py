"""A lock that a fork can't leave locked.

Enters: nothing. Leaves: a lock for `with`. Separate because a forked child inherits every lock in the state of the
fork: one that another thread held then is never released there, since that thread does not exist in the child.
"""

from __future__ import annotations

import os
import threading
from typing import Any

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """A mutual exclusion of the threads of each process; a forked child starts with it free.

    What the lock protects may be half done in a child. So a body writes its result in one last assignment.

    Args:
        reentrant: a thread that holds the lock may take it again.

    >>> lock = ForkSafeLock(reentrant=True)
    >>> with lock, lock:
    ...     pass
    """

    def __init__(self, reentrant: bool = False) -> None:
        self._make = threading.RLock if reentrant else threading.Lock
        self._locks = {os.getpid(): self._make()}

    def _own_lock(self) -> Any:
        lock = self._locks.get(os.getpid())
        # `setdefault` is one step, which threads can't interleave.
        return self._locks.setdefault(os.getpid(), self._make()) if lock is None else lock

    def __enter__(self) -> None:
        self._own_lock().acquire()

    def __exit__(self, *error: object) -> None:
        self._own_lock().release()
