"""Other libraries' loggers, made silent for a while.

Enters: names of loggers. Leaves: the same loggers with their levels put back. Separate because the exporter and the
quantiser both call libraries that log their own internals as warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager

__all__ = ["only_errors"]


@contextmanager
def only_errors(names: Sequence[str]) -> Generator[None]:
    """Let these loggers pass errors only, and put their levels back after the body."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
