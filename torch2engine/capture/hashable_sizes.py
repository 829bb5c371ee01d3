"""Sizes as keys of dictionaries, as in a cache of masks by length, while a model is traced.

Enters: nothing. Leaves: a context in which torch's symbolic sizes can be hashed. Separate because torch refuses to hash
them. But a cache that is asked for a symbolic size has only one right answer: it has no entry for this size yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

__all__ = ["hashable_sizes"]

_RELIES_ON_THE_ERROR = "einops"  # it computes without its cache where a size can't be hashed

_SYM_INT: Any = torch.SymInt
_lock = Lock()
_uses = 0
_original: Any = None


@contextmanager
def hashable_sizes() -> Generator[None]:
    """Let symbolic sizes be hashed; several threads may be inside.

    A size that follows an axis has the hash of its expression and of the trace that it belongs to. So a dictionary
    finds it only under an equal size of this trace. It never finds it under a number, or under a size that an earlier
    trace left behind in a `functools.lru_cache`.
    """
    global _uses, _original
    with _lock:
        if _uses == 0:
            _original = _SYM_INT.__hash__
            _SYM_INT.__hash__ = _hash
        _uses += 1
    try:
        yield
    finally:
        with _lock:
            _uses -= 1
            if _uses == 0:
                _SYM_INT.__hash__ = _original


def _hash(size: Any) -> int:
    node = size.node
    frame = inspect.currentframe()
    caller = None if frame is None else frame.f_back
    module = "" if caller is None else str(caller.f_globals.get("__name__", ""))
    if node.is_nested_int() or module.partition(".")[0] == _RELIES_ON_THE_ERROR:
        return _original(size)
    expression = getattr(node, "_expr", None)  # `expr` changes when torch finds out more about a size
    if expression is None:  # a constant
        return hash(int(size))
    return hash(int(expression)) if expression.is_number else hash((id(node.shape_env), expression))
