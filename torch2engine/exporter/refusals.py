"""Exceptions of torch.export, in terms of the user's code.

Enters: an exception. Leaves: an `ExportError` with the user's line and a cure. Separate because torch's messages name
its own parts and, mostly, no line.
"""

from __future__ import annotations

import linecache
import re

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from torch2engine.capture.source_lines import user_source
from torch2engine.core.errors import ExportError, Torch2EngineError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.core.wording import quote
from torch2engine.exporter.traceable_functions import GradientError

__all__ = ["explain_refusal"]

_DATA_DEPENDENT = re.compile(r"Could not guard on data-dependent expression|data-dependent", re.I)


def explain_refusal(error: Exception) -> Torch2EngineError:
    """Say in the user's words why torch.export refused."""
    if isinstance(error, Torch2EngineError):
        return error
    message = str(error)
    if isinstance(error, UnsupportedOperatorException):
        return _cannot_trace(error, "torch has no rule for the shape of its result")
    if isinstance(error, DynamicOutputShapeException):
        return _cannot_trace(error, "the shape of its result depends on values")
    if _DATA_DEPENDENT.search(message) or isinstance(error, DataDependentOutputException):
        return _depends_on_values(user_source(error))
    if isinstance(error, GradientError) or "functorch tensor" in message:
        return ExportError(
            "torch.export",
            got="a gradient that forward computes",
            allowed="a forward without torch.autograd.grad, backward or torch.func.grad: an engine has no gradients",
            fix="deploy the part whose gradient is not needed, and compute gradients in PyTorch",
            source=user_source(error),
        )
    return _unexplained(error, message)


def _depends_on_values(source: str) -> ExportError:
    """Refuse a branch on values; one that only checks them has another cure."""
    fix = "use torch.where for a choice of values, torch.cond for a branch, torch.clamp for a bound"
    if _is_check(source):
        fix = "put the check behind `if not torch.compiler.is_exporting():`, since an engine can't stop on values"
    return ExportError(
        "torch.export",
        got="a branch or a shape that depends on a tensor's values",
        allowed="control flow that does not look into tensors",
        fix=fix,
        source=source,
    )


def _is_check(source: str) -> bool:
    """Whether "FILE:LINE" is an assert, or an `if` right before a `raise`."""
    path, _, number = source.rpartition(":")
    if not number.isdigit():
        return False
    line, following = (linecache.getline(path, int(number) + step).split(maxsplit=1) for step in (0, 1))
    starts = (line[:1], following[:1])
    return starts[0] == ["assert"] or starts == (["if"], ["raise"])


def _cannot_trace(error: Exception, reason: str) -> UnsupportedOperatorError:
    operator = str(error).split(maxsplit=1)[0].replace(".default", "")  # torch adds advice below
    return UnsupportedOperatorError(
        "torch.export",
        nodes=[UnsupportedNode(operator, "", "", user_source(error), reason)],
        got=f"{operator}, which it can't trace",
        allowed="operators whose result has a shape that follows from its inputs' shapes",
        fix="write this line with other PyTorch operators",
    )


def _unexplained(error: Exception, message: str) -> ExportError:
    fix = ""
    if "Unsupported input type" in message or "not a known type" in message or "Cache" in message:
        fix = "for a Hugging Face model pass use_cache=False"
    return ExportError(
        "torch.export",
        got=quote(error),
        allowed="a model that torch.export can trace",
        fix=fix or "see the cause of this exception (`__cause__`) for torch's whole account",
        source=user_source(error),
    )
