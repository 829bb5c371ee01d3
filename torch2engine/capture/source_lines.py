"""Stack frames → the line of the user's code that a message names.

Enters: an exception, or frames of a stack. Leaves: "FILE:LINE", or "". Separate because the
errors of every stage, and every ONNX node, must point to a line that the user can change.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from torch2engine.core.package import PACKAGE_ROOT

__all__ = ["current_user_line", "innermost_user_frame", "user_source"]

# Frames in these folders are no lines that a user can change.
_FOREIGN = (
    PACKAGE_ROOT,
    *(Path(torch.__file__).parents[1] / name for name in ("torch", "onnxscript", "onnx_ir", "onnx", "sympy")),
)
_STDLIB = Path(sysconfig.get_paths()["stdlib"])


def user_source(error: BaseException) -> str:
    """ "FILE:LINE" of the innermost frame that belongs neither to torch nor to torch2engine, or ""."""
    return innermost_user_frame([(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)])


def current_user_line() -> str:
    """ "FILE:LINE" of the user's call that is running, or ""."""
    return innermost_user_frame([(frame.filename, frame.lineno) for frame in traceback.extract_stack()])


def innermost_user_frame(frames: Sequence[tuple[str, int | None]]) -> str:
    """ "FILE:LINE" of the last frame in user code (or a model library), or ""."""
    for filename, line in reversed(frames):
        path = Path(filename)
        in_stdlib = path.is_relative_to(_STDLIB) and "site-packages" not in path.parts
        if not (
            in_stdlib or filename.startswith(("<", "torch/")) or any(path.is_relative_to(folder) for folder in _FOREIGN)
        ):
            return f"{filename}:{line}"
    return ""
