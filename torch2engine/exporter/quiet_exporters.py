"""The exporters' remarks on their own internals, silenced.

Enters: a body that exports. Leaves: nothing. Separate because both exports of this folder run torch's tracer.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch2engine.core.loggers import only_errors

__all__ = ["quiet_exporters"]

_TALKATIVE_LOGGERS = (
    "torch.onnx._internal.exporter",
    "torch.onnx._internal.exporter._registration",
    "torch._export",
    "onnxscript",
    "onnx_ir",
)


_PRINTS_GRAPHS = "torch.export._trace"  # the graph so far, to stderr, when it refuses a model (torch 2.9 to 2.13)


@contextmanager
def quiet_exporters() -> Generator[None]:
    """Silence torch's, onnxscript's and onnx_ir's warnings, printed graphs and log lines below errors."""
    with only_errors(_TALKATIVE_LOGGERS), _without_print(_PRINTS_GRAPHS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_print(name: str) -> Generator[None]:
    """Let a module's `print` do nothing."""
    names: dict[str, Any] = vars(importlib.import_module(name))
    if "print" in names:  # an export inside an export
        yield
        return
    names["print"] = _say_nothing
    try:
        yield
    finally:
        names.pop("print", None)


def _say_nothing(*values: object, **options: object) -> None:
    del values, options
