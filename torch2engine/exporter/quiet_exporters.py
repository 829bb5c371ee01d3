"""The exporters' remarks on their own internals, silenced.

Enters: a body that exports. Leaves: nothing. Separate because both exports of this folder run torch's tracer.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from torch2engine.core.loggers import only_errors

__all__ = ["quiet_exporters"]

_TALKATIVE_LOGGERS = (
    "torch.onnx._internal.exporter",
    "torch.onnx._internal.exporter._registration",
    "torch._export",
    "onnxscript",
    "onnx_ir",
)


@contextmanager
def quiet_exporters() -> Generator[None]:
    """Silence torch's, onnxscript's and onnx_ir's warnings and log lines below errors."""
    with only_errors(_TALKATIVE_LOGGERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
