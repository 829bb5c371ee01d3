"""torch's arithmetic on symbolic sizes, done once for equal sizes.

Enters: nothing. Leaves: a context in which sums, products and comparisons of sizes are looked up where they were made
before. Separate because it alone knows what such a result depends on.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["size_arithmetic_remembered"]

_SYM_NODE = "torch.fx.experimental.sym_node"
_PROXY_TENSOR = "torch.fx.experimental.proxy_tensor"
_LOGGING = "torch._logging._internal"
# Methods of torch's SymNode whose result follows from the two operands and the shape environment's replacements.
_METHODS = ("_add", "_sub", "_mul", "_eq", "_ne", "_lt", "_le", "_gt", "_ge", "_and_", "_or_")
_PLAIN_TYPES = (int, bool)

Binary = Callable[[Any, Any], Any]


@contextmanager
def size_arithmetic_remembered() -> Generator[None]:
    """Let torch compute each sum, product and comparison of sizes once inside the body.

    With a dynamic axis, torch computes sizes, strides and bytes of every fake tensor symbolically, several times each.
    The layers of a model repeat the same 40,000 calculations. That is a fifth of an export (torch 2.11).
    """
    try:
        node_class: Any = importlib.import_module(_SYM_NODE).SymNode
        find_proxy_mode: Callable[[], Any] = importlib.import_module(_PROXY_TENSOR).get_proxy_mode
        is_traced = bool(importlib.import_module(_LOGGING).GET_DTRACE_STRUCTURED)
        before: dict[str, Binary] = {name: vars(node_class)[name] for name in _METHODS}
    except (ImportError, AttributeError, KeyError):  # other versions
        yield
        return
    if is_traced:  # TORCH_TRACE writes down every calculation
        yield
        return
    for name, compute in before.items():
        setattr(node_class, name, _remembering(compute, node_class, find_proxy_mode))
    try:
        yield
    finally:
        for name, compute in before.items():
            setattr(node_class, name, compute)


def _remembering(compute: Binary, node_class: Any, find_proxy_mode: Callable[[], Any]) -> Binary:
    """The method, with a memory of its results.

    A result is a new node each time: torch's tracers tell nodes apart by identity. While a tracer writes calculations
    down, torch's own method hands them to it, and asks again for their results without the tracer.

    Args:
        compute: torch's own method.
        node_class: torch's SymNode.
        find_proxy_mode: gives the tracer that writes down calculations, or None.
    """
    memories = _Memory()

    def remember(self: Any, other: Any) -> Any:
        environment = self.shape_env
        if not _is_plain(self, node_class) or not _is_plain(other, node_class) or find_proxy_mode():
            return compute(self, other)
        results = memories.of(environment)
        key = (*_facts(self), *_facts(other))
        known = results.get(key)
        if known is None:
            result = compute(self, other)
            if _is_plain(result, node_class) and results is memories.of(environment):
                results[key] = _facts(result)
            return result
        expression, type_of_value, hint, is_optimized = known
        return node_class(expression, environment, type_of_value, hint, optimized_summation=is_optimized)

    return remember


class _Memory(threading.local):
    """Results in one shape environment at a time. Each thread has its own: others may compile models meanwhile."""

    def __init__(self) -> None:
        self._environment: Any = None
        self._version = 0
        self._results: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def of(self, environment: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        """The results in this environment, which are forgotten once it learns something, such as equal sizes."""
        if self._environment is not environment or self._version != environment._version_counter:
            self._environment, self._version = environment, environment._version_counter
            self._results = {}
        return self._results


def _is_plain(node: Any, node_class: Any) -> bool:
    """Whether a node is a size with a known example, in an environment that records no calculations of its own."""
    if type(node) is not node_class or type(node._hint) not in _PLAIN_TYPES:
        return False
    environment = node.shape_env
    return environment is not None and not environment._translation_validation_enabled


def _facts(node: Any) -> tuple[Any, ...]:
    """What a result depends on, and what a node is made of: expression, type, example, and how its sum is kept."""
    return node._expr, node.pytype, node._hint, node._optimized_summation
