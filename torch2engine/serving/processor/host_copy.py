"""Copies from array to array in host memory, by several threads where one would keep the GPU waiting.

Enters: arrays of one shape. Leaves: the target filled. Separate because one core copies some 10 GB/s, a fifth of what a
GPU takes in. A batch of images would take longer to stage than to answer.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HostCopier", "split_copy"]

_MOST_THREADS = 6
_PIECE_BYTES = 1 << 20
_PIECES_PER_THREAD = 4  # while a thread has no core, the others copy its share

Array = npt.NDArray[Any]


def split_copy(target: Array, source: Array, most: int) -> list[tuple[Array, Array]]:
    """Split a copy into at most `most` pieces of similar size, each of at least `_PIECE_BYTES`.

    Args:
        target, source: of one shape; any strides, even another dtype.
        most: at least 1.
    """
    count = min(most, target.nbytes // _PIECE_BYTES)
    if count < 2 or not target.flags.c_contiguous:  # the flat form of such an array would be a copy
        return [(target, source)]
    if source.flags.c_contiguous:
        target = target.reshape(-1)
        source = source.reshape(-1)
    count = min(count, len(target))
    bounds = [len(target) * index // count for index in range(count + 1)]
    return [(target[low:high], source[low:high]) for low, high in itertools.pairwise(bounds)]


def _copy(target: Array, source: Array) -> None:
    # Earlier checks decided that the cast loses nothing; numpy's own rules differ for foreign dtypes.
    np.copyto(target, source, casting="unsafe")


class _SharedCopy:
    """A copy in pieces for several threads. The calling thread copies too, so that it does not depend on the others."""

    def __init__(self, parts: Sequence[tuple[Array, Array]]) -> None:
        self._lock = threading.Lock()
        self._parts = iter(parts)
        self._left = len(parts)
        self._done = threading.Event()
        self._error: BaseException | None = None

    def work(self) -> None:
        """Copy pieces until there are no more to take."""
        while True:
            with self._lock:
                part = next(self._parts, None)
            if part is None:
                return
            try:
                _copy(*part)
            except BaseException as error:
                self._error = error
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._done.set()

    def finish(self) -> None:
        """Copy, and wait for the helping threads."""
        try:
            self.work()
        finally:  # after an interrupt, no thread may go on writing to memory that others use again
            self._done.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None


class HostCopier:
    """Threads that help to copy; they are made at the first large copy and end with `close`.

    Args:
        threads: how many may copy at once, the caller's included; None for one per core, at most six.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._count = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[_SharedCopy | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def copy(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        """Copy each source into its target, and return when all is done.

        Args:
            pairs: (target, source) of one shape; targets don't overlap.
        """
        most = _PIECES_PER_THREAD * self._count
        parts = [part for target, source in pairs for part in split_copy(target, source, most)]
        if len(parts) == len(pairs) or not self._start():
            for part in parts:
                _copy(*part)
            return
        together = _SharedCopy(parts)
        for _ in range(self._count - 1):
            self._work.put(together)
        together.finish()

    def _start(self) -> bool:
        """Start the threads if there are none; False after `close`."""
        with self._lock:
            while not self._is_closed and len(self._threads) < self._count - 1:
                thread = threading.Thread(
                    target=_help_copying, args=(self._work,), name="torch2engine copy", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            return not self._is_closed

    def close(self) -> None:
        """Let the threads end; copies go on without them."""
        with self._lock:
            self._is_closed = True
            for _ in self._threads:
                self._work.put(None)
            self._threads.clear()


def _help_copying(work: queue.SimpleQueue[_SharedCopy | None]) -> None:
    while (one := work.get()) is not None:
        one.work()
        del one  # otherwise the copy's arrays would live until the next copy
