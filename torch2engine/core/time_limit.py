"""The time in which a search for something faster may begin anything.

Enters: seconds. Leaves: permission, or `OutOfTime`. Separate because whoever sets the limit is not who keeps it: a
compiler can't be stopped once it has begun, so it asks before.
"""

from __future__ import annotations

import time

__all__ = ["OutOfTime", "TimeLimit"]


class OutOfTime(Exception):
    """Something would begin too late; the text says what."""


class TimeLimit:
    """The time until which preparations may begin. What has begun is finished.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = time.monotonic() + seconds

    def lift(self) -> None:
        """Let everything begin from now on."""
        self._end = None

    def check(self, what: str) -> None:
        """Refuse to begin something after the end.

        Raises:
            OutOfTime: it is after the end.
        """
        if self._end is not None and time.monotonic() > self._end:
            raise OutOfTime(f"{what} would begin after the {self._seconds:g} s of BuildConfig.optimize_seconds")
