"""A warning that points at the user's line.

Enters: a text. Leaves: a UserWarning at the innermost line outside of this package. Separate because the number of
frames between the two differs by the step that warns.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

from torch2engine.core.package import PACKAGE_ROOT

__all__ = ["warn_user"]


def warn_user(text: str) -> None:
    """Warn, as of the line of the user's code that called the package."""
    frame = inspect.currentframe()
    level = 1  # as warnings.warn counts frames: 1 is this function
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE_ROOT):
        frame = frame.f_back
        level += 1
    warnings.warn(text, stacklevel=level)
