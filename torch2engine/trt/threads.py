"""Whether other Python threads may wait for the whole device, which the capture of a CUDA graph would break.

Enters: nothing. Leaves: yes or no. Apart from `_torch` because serving without PyTorch captures graphs too.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["is_alone"]

# Their threads wait for queues and clocks, never for a whole device.
_HARMLESS = (
    *("torch.utils.data", "torch._inductor", "torch2engine", "multiprocessing.queues"),
    *("tqdm", "rich", "ipykernel", "IPython"),
)


def is_alone() -> bool:
    """Whether no other Python thread runs that may call ``torch.cuda.synchronize()``.

    While any stream of a device is captured, a wait for the whole device fails in every thread, and breaks the capture
    (CUDA 12 and 13, whatever the capture's mode).
    """
    here = threading.current_thread()
    return all(thread is here or f"{_home(thread)}.".startswith(_prefixes()) for thread in threading.enumerate())


def _prefixes() -> tuple[str, ...]:
    return tuple(f"{name}." for name in _HARMLESS)


def _home(thread: threading.Thread) -> str:
    """The module that a thread's code is from."""
    target: Any = vars(thread).get("_target")
    return str(getattr(target, "__module__", None) or type(thread).__module__)
