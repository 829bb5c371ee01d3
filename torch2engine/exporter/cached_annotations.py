"""Annotations of torch's operators, looked up and not made anew.

Enters: nothing. Leaves: a context in which the module of torch's operators takes `Callable` from typing. Separate
because it alone knows which of torch's functions make annotations while they run.
"""

from __future__ import annotations

import collections.abc
import importlib
import typing
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["cached_annotations"]

_OPERATORS = "torch._ops"


@contextmanager
def cached_annotations() -> Generator[None]:
    """Let torch evaluate the annotation `Callable[..., ...]` of its operators from typing's cache.

    For every decomposition torch registers ten kernels at each of its composite operators. Each time it defines a
    function whose annotations name `Callable`, which collections.abc makes anew, and typing only looks up. That is a
    sixth of a small model's export (torch 2.13).
    """
    operators: Any = importlib.import_module(_OPERATORS)
    before = getattr(operators, "Callable", None)
    if before is not collections.abc.Callable:  # other versions, or an export inside an export
        yield
        return
    operators.Callable = typing.Callable
    try:
        yield
    finally:
        operators.Callable = before
