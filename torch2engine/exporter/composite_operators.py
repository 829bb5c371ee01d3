"""PyTorch's composite operators, looked for once for an export and not for every decomposition.

Enters: nothing. Leaves: a context in which torch.export looks for them at its first question only. Separate because it
alone knows how torch.export finds them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

__all__ = ["composite_operators_found_once"]

_EXPORT_UTILS = "torch._export.utils"
# The first loads the dispatcher's into `torch.ops`, the second finds those of a namespace there.
_SEARCHES = ("_materialize_cpp_cia_ops", "_collect_all_valid_cia_ops_for_namespace")
# Tells whether an operator may stay whole in a graph: the dispatcher has it, and it writes into no argument.
_VALIDITY = "_check_valid_to_preserve"


@contextmanager
def composite_operators_found_once() -> Generator[None]:
    """Let torch.export look for composite operators once inside the body.

    For every decomposition, and for every table of them, torch.export asks each namespace of `torch.ops` for its
    composite operators. Each time it first loads those of all namespaces, 58 times for an export. That is a third of a
    small model's export (torch 2.13). Operators of a library that is imported after the first question are loaded when
    they are used, and by the next export. What it asks of each operator is kept for later exports as well.
    """
    try:
        utils: Any = importlib.import_module(_EXPORT_UTILS)
        before = {name: getattr(utils, name) for name in (*_SEARCHES, _VALIDITY)}
        is_there = importlib.import_module("torch._C")._dispatch_has_kernel
    except (ImportError, AttributeError):  # other versions
        yield
        return

    def is_valid(operator: Any) -> bool:
        return _validity(before[_VALIDITY], operator, is_there(operator.name()))

    vars(utils).update({name: cache(before[name]) for name in _SEARCHES})
    setattr(utils, _VALIDITY, is_valid)
    try:
        yield
    finally:
        vars(utils).update(before)


@lru_cache(maxsize=1 << 14)
def _validity(ask: Callable[[Any], bool], operator: Any, is_there: bool) -> bool:
    """What torch.export finds out about an operator. It follows from the operator's schema and from `is_there`."""
    return ask(operator)
