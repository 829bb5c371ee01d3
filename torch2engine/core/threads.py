"""A live Python thread → where its code is from, and whether it only waits for work.

Enters: a thread. Leaves: a module's name, or yes or no. Separate because captures and random generators both ask what
other threads may do meanwhile.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

__all__ = ["is_idle_worker", "thread_origin"]

_POOL = "concurrent.futures.thread"


def is_idle_worker(thread: threading.Thread) -> bool:
    """Whether a thread belongs to a ThreadPoolExecutor and waits for work, such as Inductor's after a compilation.

    Only a running thread could give it work, and such a thread is looked at itself. While it waits, its innermost frame
    is the pool's own loop, without an item (Python 3.10 to 3.14).
    """
    if thread_origin(thread) != _POOL or thread.ident is None:
        return False
    frame = sys._current_frames().get(thread.ident)  # pyright: ignore[reportPrivateUsage]  # a documented function
    return frame is not None and frame.f_code.co_name == "_worker" and "work_item" not in frame.f_locals


def thread_origin(thread: threading.Thread) -> str:
    """The name of the module that a thread's code is from."""
    target: Any = vars(thread).get("_target")
    return str(getattr(target, "__module__", None) or type(thread).__module__)
