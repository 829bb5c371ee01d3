"""PyTorch's composite operators, loaded into `torch.ops` once for an export and not for every namespace.

Enters: nothing. Leaves: a context in which torch.export loads them at its first question only. Separate because it
alone knows how torch.export loads them.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["composite_operators_loaded_once"]

_EXPORT_UTILS = "torch._export.utils"
_LOADER = "_materialize_cpp_cia_ops"


@contextmanager
def composite_operators_loaded_once() -> Generator[None]:
    """Let torch.export load the dispatcher's composite operators once inside the body.

    For every decomposition torch.export asks each namespace of `torch.ops` for its composite operators. Each time it
    first loads those of all namespaces, 58 times for an export. That is a third of a small model's export (torch 2.13).
    Operators of a library that is imported inside the body are loaded when they are used, and by the next export.
    """
    try:
        utils: Any = importlib.import_module(_EXPORT_UTILS)
        before = getattr(utils, _LOADER)
    except (ImportError, AttributeError):  # other versions
        yield
        return
    setattr(utils, _LOADER, cache(before))
    try:
        yield
    finally:
        setattr(utils, _LOADER, before)
