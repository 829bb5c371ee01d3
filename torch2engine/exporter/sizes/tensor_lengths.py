"""`len(tensor)` in a model's code, which stays a size while the model is traced.

Enters: a model that is about to be traced. Leaves: nothing; meanwhile the files of its modules have a `len` of their
own. Separate because Python's `len` returns a plain number always, and torch would fix the axis that it follows.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import SymInt, Tensor, nn

__all__ = ["lengths_as_sizes"]

_NAME = "len"


@contextmanager
def lengths_as_sizes(model: nn.Module) -> Generator[None]:
    """Let `len(x)` give `x.shape[0]` of a traced tensor in every file that defines a module of the model.

    Other files, and those with a `len` of their own, are left alone. For any other value it is Python's `len`.
    """
    files = [file for file in _files(model) if _NAME not in file]
    for file in files:
        file[_NAME] = _length
    try:
        yield
    finally:
        for file in files:
            file.pop(_NAME, None)


def _files(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of every file with a module's class or one of its bases; PyTorch's own are left out."""
    names = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    outside = sorted(name for name in names - {"builtins"} if name.partition(".")[0] != "torch")
    return [vars(sys.modules[name]) for name in outside if name in sys.modules]


def _length(value: Any, /) -> Any:
    is_traced = isinstance(value, Tensor) and value.dim() > 0 and isinstance(value.shape[0], SymInt)
    return value.shape[0] if is_traced else builtins.len(value)
