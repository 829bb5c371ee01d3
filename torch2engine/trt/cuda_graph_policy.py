"""Whether and when to capture the inferences of one stream in CUDA graphs.

Enters: `RuntimeConfig.cuda_graphs`, and the outcomes of earlier captures. Leaves: yes or no. Separate because TRTModule
and Processor decide in the same way, and nothing here needs a GPU.
"""

from __future__ import annotations

import sys
import threading
from typing import Protocol

from torch2engine.core.threads import is_idle_worker, thread_origin

__all__ = ["CapturePolicy", "is_harmless", "no_thread_may_synchronize"]

# After this many enqueues, TensorRT has loaded its kernels; a capture forbids loading.
_WARM_ENQUEUES = {True: 1, "auto": 2}
_MAX_DOUBLINGS = 6
_ATTEMPTS = 3  # Another thread that waits for the whole device breaks a capture.
_PAUSE_SECONDS = 0.1

# The users of these packages may wait for a whole device.
_SYNCHRONIZING_PACKAGES = ("torch", "cupy", "numba.cuda", "jax", "tensorflow")
# The threads of these packages wait for queues and clocks, never for a whole device.
_HARMLESS_PACKAGES = (
    *("torch.utils.data", "torch._inductor", "torch2engine", "multiprocessing.queues"),
    *("tqdm", "rich", "ipykernel", "IPython"),
)


class _EnqueueHistory(Protocol):
    """The part of a `PreparedShape` that decides whether it is warm."""

    @property
    def enqueue_count(self) -> int: ...

    @property
    def eviction_count(self) -> int: ...


class CapturePolicy:
    """Decide for one stream when to capture, and stop after captures have failed too often. Not thread-safe.

    Args:
        cuda_graphs: as in `RuntimeConfig`: True, False or "auto".
    """

    def __init__(self, cuda_graphs: bool | str) -> None:
        self.is_enabled = cuda_graphs is not False
        self.is_forced = cuda_graphs is True
        self._warm_enqueues = _WARM_ENQUEUES.get(cuda_graphs, 0)
        self._attempts_left = _ATTEMPTS
        self._paused_until = 0.0

    def is_warm(self, history: _EnqueueHistory) -> bool:
        """Whether a shape was enqueued often enough.

        A shape that loses its context and graphs repeatedly needs more enqueues each time. Otherwise all its calls
        would be captures.
        """
        return history.enqueue_count >= self._warm_enqueues << min(history.eviction_count, _MAX_DOUBLINGS)

    def is_paused(self, now: float) -> bool:
        """Whether `check_threads` found a thread shortly before this time, a value of time.perf_counter()."""
        return now < self._paused_until

    def check_threads(self, now: float) -> bool:
        """Make sure that a capture breaks no other thread's wait for the device; pause captures if it could.

        With cuda_graphs=True the user has decided, so no thread is checked.

        Args:
            now: a value of time.perf_counter().
        """
        if self.is_forced:
            return True
        if self.is_paused(now):
            return False
        if no_thread_may_synchronize():
            return True
        self._paused_until = now + _PAUSE_SECONDS
        return False

    def count_failure(self) -> None:
        """Count a failed capture; after the last attempt `is_enabled` is False, and nothing is captured any more."""
        self._attempts_left -= 1
        if self._attempts_left == 0:
            self.is_enabled = False


def no_thread_may_synchronize() -> bool:
    """Whether no other Python thread runs that may wait for a whole device, as ``torch.cuda.synchronize()`` does.

    While any stream of a device is captured, such a wait fails in every thread, and breaks the capture (CUDA 12 and
    13, whatever the capture's mode).
    """
    if not any(package in sys.modules for package in _SYNCHRONIZING_PACKAGES):
        return True
    current = threading.current_thread()
    return all(thread is current or is_harmless(thread) for thread in threading.enumerate())


def is_harmless(thread: threading.Thread) -> bool:
    """Whether a thread's code is from a package whose threads never wait for a device, or it only waits for work."""
    origin = f"{thread_origin(thread)}."
    return origin.startswith(tuple(f"{package}." for package in _HARMLESS_PACKAGES)) or is_idle_worker(thread)
