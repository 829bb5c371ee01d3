"""torch.onnx's registry of operators, made once and not for every export.

Enters: nothing. Leaves: a context in which torch.onnx takes its registry from here. Separate because it alone knows how
torch.onnx makes the registry and what the registry depends on.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

__all__ = ["reused_operator_registry"]

_EXPORTER_REGISTRY = "torch.onnx._internal.exporter._registration"
_EXPORTER_OPERATORS = "torch.onnx._internal.exporter._torchlib._torchlib_registry"
_ONNXSCRIPT_OPERATORS = "onnxscript.function_libs.torch_lib.registration"
_ONNXSCRIPT_FUNCTIONS = "onnxscript.function_libs.torch_lib.ops"
_ONNXSCRIPT_VALUES = "onnxscript.values"


@dataclass(frozen=True)
class _RegisteredOperators:
    """How many operators there are; a registry holds as long as none is added.

    Args:
        in_torch: operators of PyTorch and its extensions, such as torchvision, for which onnxscript has a function.
            Others may come at any time, and the first export brings some.
        in_exporter: ONNX functions of torch.onnx.
        in_onnxscript: ONNX functions of onnxscript, with those that a user has registered there.
    """

    in_torch: int
    in_exporter: int
    in_onnxscript: int

    @classmethod
    def count(cls) -> _RegisteredOperators:
        dispatcher: Any = importlib.import_module("torch._C")
        exporter: Any = importlib.import_module(_EXPORTER_OPERATORS)
        importlib.import_module(_ONNXSCRIPT_FUNCTIONS)  # or the first count would be that of an empty registry
        onnxscript: Any = importlib.import_module(_ONNXSCRIPT_OPERATORS)
        return cls(
            in_torch=sum(map(dispatcher._dispatch_has_kernel, onnxscript.default_registry)),
            in_exporter=len(exporter.get_torchlib_ops()),
            in_onnxscript=sum(len(op.overloads) + len(op.complex) for op in onnxscript.default_registry.values()),
        )


@contextmanager
def reused_operator_registry() -> Generator[None]:
    """Let torch.onnx take a copy of an earlier export's registry of operators.

    torch.onnx makes the registry anew for every export, and onnxscript parses the source of 500 functions for it. That
    is half of a small model's export (torch 2.13, onnxscript 0.7).
    """
    try:
        registry_class: Any = importlib.import_module(_EXPORTER_REGISTRY).ONNXRegistry
        before = inspect.getattr_static(registry_class, "from_torchlib")
        make = registry_class.from_torchlib
        registered = _RegisteredOperators.count()
    except (ImportError, AttributeError):  # other versions
        yield
        return

    def copied_from_earlier(**options: Any) -> Any:
        registry = copy.copy(_made_once(make, registered, **options))
        registry.functions = {operator: list(functions) for operator, functions in registry.functions.items()}
        return registry

    registry_class.from_torchlib = staticmethod(copied_from_earlier)
    try:
        yield
    finally:
        registry_class.from_torchlib = before


@lru_cache(maxsize=4)  # for one opset or two
def _made_once(make: Callable[..., Any], registered: _RegisteredOperators, **options: Any) -> Any:
    """Make a registry; after a change of `registered`, a later call makes it anew."""
    with _domains_without_parsing():
        return make(**options)


@contextmanager
def _domains_without_parsing() -> Generator[None]:
    """Let onnxscript tell the domain of a function without a look at the function's source.

    torch.onnx asks each function for its `function_ir`, of which it takes the domain and does not use it. onnxscript
    parses the source of 500 functions for that, two thirds of the registry's time (onnxscript 0.7).
    """
    try:
        traced: Any = importlib.import_module(_ONNXSCRIPT_VALUES).TracedOnnxFunction
        before = inspect.getattr_static(traced, "function_ir")
    except (ImportError, AttributeError):  # other versions
        yield
        return
    traced.function_ir = property(lambda function: SimpleNamespace(domain=function.opset.domain))
    try:
        yield
    finally:
        traced.function_ir = before
