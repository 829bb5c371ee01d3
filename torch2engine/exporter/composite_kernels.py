"""The kernels that torch.export registers at composite operators for a decomposition, made once.

Enters: nothing. Leaves: a context in which torch.export takes them from an earlier decomposition. Separate because it
alone knows which kernels they are, and what they depend on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["composite_kernels_made_once"]

_PROGRAM = "torch.export.exported_program"
_OVERRIDE = "_override_composite_implicit_decomp"
_FAKE_RULES = "torch._subclasses.fake_impls"
_DISPATCHER = "torch._C"

Override = Callable[[Mapping[Any, Callable[..., Any]]], AbstractContextManager[None]]


@dataclass(frozen=True)
class _Registered:
    """What torch.export registers at one operator.

    Args:
        kernels: {dispatch key: kernel}; under CompositeImplicitAutograd stands what a decomposition brings itself.
        fake_rule: how the operator answers fake tensors meanwhile.
    """

    kernels: Mapping[Any, Any]
    fake_rule: Callable[..., Any]


@contextmanager
def composite_kernels_made_once() -> Generator[None]:
    """Let torch.export register the kernels of an earlier decomposition at its composite operators.

    For every decomposition torch.export makes 20 kernels for each of 250 operators, and takes them away afterwards.
    They follow from the operator and what is registered at it. That is a quarter of a small export (torch 2.13).
    """
    before = _torchs_own()
    if before is None:
        yield
        return
    program = importlib.import_module(_PROGRAM)

    def from_earlier(decompositions: Mapping[Any, Callable[..., Any]]) -> AbstractContextManager[None]:
        return _registered(before, decompositions)

    setattr(program, _OVERRIDE, from_earlier)
    try:
        yield
    finally:
        setattr(program, _OVERRIDE, before)


def _torchs_own() -> Override | None:
    """torch's function that registers the kernels; None where this torch does it otherwise."""
    try:
        own: Override = getattr(importlib.import_module(_PROGRAM), _OVERRIDE)
        fake = importlib.import_module(_FAKE_RULES)
    except (ImportError, AttributeError):
        return None
    has_rules = hasattr(fake, "op_implementations_dict") and hasattr(fake, "_deregister_op_impl")
    return own if has_rules else None


@contextmanager
def _registered(override: Override, decompositions: Mapping[Any, Callable[..., Any]]) -> Generator[None]:
    """Do what torch's own function does, by kernels that are there already.

    Args:
        override: torch's own.
        decompositions: of each operator; one that returns NotImplemented keeps the operator.
    """
    fake: Any = importlib.import_module(_FAKE_RULES)
    composite = importlib.import_module(_DISPATCHER).DispatchKey.CompositeImplicitAutograd
    kernels_before: dict[Any, dict[Any, Any]] = {}
    try:
        for operator, decomposition in decompositions.items():
            has_rule = operator in fake.op_implementations_dict
            made = _made_once(override, operator, frozenset(operator.py_kernels.items()), has_rule)
            kernels_before[operator] = operator.py_kernels.copy()
            operator.py_kernels.update(made.kernels)
            operator.py_kernels[composite] = decomposition
            operator._dispatch_cache.clear()
            fake.op_implementations_dict[operator] = made.fake_rule
        yield
    finally:
        for operator, kernels in kernels_before.items():
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()
            fake._deregister_op_impl(operator)


@lru_cache(maxsize=4096)
def _made_once(override: Override, operator: Any, kernels: frozenset[Any], has_rule: bool) -> _Registered:
    """Let torch register its kernels at one operator; after a change of what is there, it makes them anew.

    Args:
        override: torch's own function.
        kernels, has_rule: the operator's kernels as they are, and whether it answers fake tensors by a rule.
    """
    fake: Any = importlib.import_module(_FAKE_RULES)
    with override({operator: _keep}):
        return _Registered(dict(operator.py_kernels), fake.op_implementations_dict[operator])


def _keep(*args: Any, **options: Any) -> Any:
    return NotImplemented
