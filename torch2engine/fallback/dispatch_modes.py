"""Operators that no mode of PyTorch's dispatcher sees.

Enters: nothing. Leaves: a context without modes. Separate because `deploy` needs it too, and what stands beside it
for torch.compile imports torch._dynamo, which takes a second.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]  # there is no public one
)

__all__ = ["dispatch_modes_off"]


@contextmanager
def dispatch_modes_off() -> Generator[None]:
    """Hide the operators of the body from every mode of PyTorch's dispatcher.

    AOTAutograd watches the first call of a graph by such a mode (torch 2.13). A deploy in that call traces, and has
    modes of its own, which must be the outermost.
    """
    with _disable_current_modes():
        yield
