"""torch.export's decisions about dynamic axes while it traces, and its refusals in the user's words.

Enters: torch's log of symbolic shapes, and its exceptions. Leaves: `DynamicAxisError` or `ExportError` with the axis's
name and the user's line. Separate because torch's messages name internal symbols and, mostly, no line.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from torch._subclasses.fake_tensor import DataDependentOutputException, UnsupportedOperatorException

from torch2engine.capture.source_lines import innermost_user_frame, user_source
from torch2engine.core.errors import (
    DynamicAxisError,
    ExportError,
    Torch2EngineError,
    UnsupportedNode,
    UnsupportedOperatorError,
)
from torch2engine.core.package import PACKAGE_ROOT

__all__ = ["AxisOfDimension", "ShapeGuard", "ShapeGuards", "axes_must_be_equal", "explain_refusal", "record_guards"]

AxisOfDimension = Mapping[tuple[int, int], str]  # (index of the input, dimension) -> axis name

# torch/fx/experimental/symbolic_shapes.py logs each decision at INFO while the user's frame is still on the stack
# (seen in torch 2.9 to 2.13). If these texts change, sources become empty and nothing else.
_LOGGER = "torch.fx.experimental.symbolic_shapes"
_CREATED = re.compile(r"create_symbol (\w+) = \S+ for L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_GUARDED = re.compile(r"eval (?!\[guard suppressed\])(.+?) \[guard added\]")
_PINNED = re.compile(r"set_replacement (\w+) = (\d+) ")


@dataclass(frozen=True)
class ShapeGuard:
    """One decision of torch's about a shape.

    Args:
        condition: in torch's symbols; the symbol alone where it became a number.
        source: the user's "FILE:LINE" that made torch decide, or "".
        is_pinned: True where the symbol became a number.
    """

    condition: str
    source: str
    is_pinned: bool


@dataclass
class ShapeGuards:
    """All decisions of one export, filled in while it runs.

    Args:
        axis_of: the axis of each dynamic dimension.
        dimension_of: torch's symbol -> (index of the input, dimension) that it stands for.
        guards: in the order in which torch made them.
    """

    axis_of: AxisOfDimension
    dimension_of: dict[str, tuple[int, int]] = field(default_factory=dict[str, "tuple[int, int]"])
    guards: list[ShapeGuard] = field(default_factory=list[ShapeGuard])

    def read_record(self, record: logging.LogRecord) -> bool:
        """Read one log record; only errors go further, since torch prints whole graphs as warnings."""
        message = record.getMessage()
        if created := _CREATED.search(message):
            self.dimension_of[created[1]] = (int(created[2]), int(created[3]))
        elif pinned := _PINNED.search(message):
            self.guards.append(ShapeGuard(pinned[1], _current_user_line(), is_pinned=True))
        elif guarded := _GUARDED.search(message):
            self.guards.append(ShapeGuard(guarded[1], _current_user_line(), is_pinned=False))
        return record.levelno >= logging.ERROR

    def source_of(self, axis: str) -> str:
        """The line that pinned `axis`, else the first that constrained it, else ""."""
        symbols = [symbol for symbol, dimension in self.dimension_of.items() if self.axis_of.get(dimension) == axis]
        if not symbols:
            return ""
        any_symbol = re.compile(r"\b(" + "|".join(symbols) + r")\b")
        matching = [guard for guard in self.guards if guard.source and any_symbol.search(guard.condition)]
        pinned = [guard for guard in matching if guard.is_pinned]
        return next((guard.source for guard in (*pinned, *matching)), "")


def _current_user_line() -> str:
    """The user's line in the model's forward, or "".

    torch decides outside of forward too, where the innermost line of user code is that of the call to torch2engine. So
    the walk ends at the first frame of this package: the flat module's forward, or the call of torch.export.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(inspect.currentframe())]
    outside_this_file = [frame for frame in frames if frame[0] != __file__]
    in_forward = list(takewhile(lambda frame: not Path(frame[0]).is_relative_to(PACKAGE_ROOT), outside_this_file))
    return innermost_user_frame(in_forward[::-1])


@contextmanager
def record_guards(axis_of: AxisOfDimension) -> Generator[ShapeGuards]:
    """Collect torch's shape decisions while the body exports.

    Args:
        axis_of: the axis of each dynamic dimension.
    """
    guards = ShapeGuards(axis_of)
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.addFilter(guards.read_record)
    logger.setLevel(logging.INFO)
    try:
        yield guards
    finally:
        logger.setLevel(level)
        logger.removeFilter(guards.read_record)


_SPECIALIZED = re.compile(r"marked (?:\d+\*)?(\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RANGE = re.compile(r"Not all values of (\w+) = .*? satisfy the generated guard (.+?)\.?$", re.M)
_EQUAL = re.compile(r"The values of (\w+) = .*? and (\w+) = .*? must always be equal")
_SUGGESTED = re.compile(r"^  (\w+) = (.+)$", re.M)
_DATA_DEPENDENT = re.compile(r"Could not guard on data-dependent expression|data-dependent", re.I)
_SIZE = re.compile(r"L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")


def explain_refusal(error: Exception, guards: ShapeGuards) -> Torch2EngineError:
    """Say in the user's words why torch.export refused.

    Args:
        error: what torch.export raised.
        guards: its decisions until then.
    """
    if isinstance(error, Torch2EngineError):
        return error
    message = str(error)
    if isinstance(error, UnsupportedOperatorException):
        return _has_no_shape_rule(error)
    if _DATA_DEPENDENT.search(message) or isinstance(error, DataDependentOutputException):
        return ExportError(
            "torch.export",
            got="a branch or a shape depends on a tensor's values",
            allowed="control flow that does not look into tensors",
            fix="use torch.where for a choice of values, torch.cond for a branch, torch.clamp for a bound",
            source=user_source(error),
        )
    if pinned := _SPECIALIZED.search(message):
        return _axis_is_pinned(pinned, guards)
    if equal := _EQUAL.search(message):
        first, second = (_axis_of_torch_dim(name, guards.axis_of) for name in equal.groups())
        return axes_must_be_equal(first, second, guards)
    if ranged := _RANGE.search(message):
        return _axis_is_narrower(ranged, message, guards)
    return _unexplained(error, message)


def _has_no_shape_rule(error: UnsupportedOperatorException) -> UnsupportedOperatorError:
    operator = str(error).replace(".default", "")
    reason = "torch has no rule for the shape of its result"
    return UnsupportedOperatorError(
        "torch.export",
        nodes=[UnsupportedNode(operator, "", "", user_source(error), reason)],
        got=f"it can't trace {operator}",
        fix="write this line with other PyTorch operators",
    )


def _axis_is_pinned(match: re.Match[str], guards: ShapeGuards) -> DynamicAxisError:
    axis = _axis_of_torch_dim(match[1], guards.axis_of)
    return DynamicAxisError(
        f"axis '{axis}'",
        axis=axis,
        got="the model pins it down",
        allowed=f"the model works only with {axis} = {match[2]}",
        fix=f"compute with x.shape or -1 instead of a fixed size there, or leave '{axis}' out of dynamic_axes",
        source=guards.source_of(axis),
    )


def _axis_is_narrower(match: re.Match[str], message: str, guards: ShapeGuards) -> DynamicAxisError:
    axis = _axis_of_torch_dim(match[1], guards.axis_of)
    condition = _SIZE.sub(lambda size: guards.axis_of.get((int(size[1]), int(size[2])), size[0]), match[2])
    suggestions = dict[str, str](_SUGGESTED.findall(message))
    suggestion = suggestions.get(axis) or suggestions.get(f"_{axis}", "")
    return DynamicAxisError(
        f"axis '{axis}'",
        axis=axis,
        got="the model does not hold for all of its range",
        allowed=f"the model needs {condition}",
        fix=_range_fix(axis, suggestion),
        source=guards.source_of(axis),
    )


def axes_must_be_equal(one: str, other: str, guards: ShapeGuards) -> DynamicAxisError:
    """The error for two axes that the model needs to be equal."""
    first, second = sorted((one, other))
    return DynamicAxisError(
        f"axes '{first}' and '{second}'",
        axis=second,
        got="the model needs them to be equal",
        allowed="one name for sizes that are always equal",
        fix=f"call both '{first}' in dynamic_axes",
        source=guards.source_of(second) or guards.source_of(first),
    )


def _axis_of_torch_dim(dim: str, axis_of: AxisOfDimension) -> str:
    """The axis of a torch Dim; one with multiple_of counts its steps in a Dim called "_axis"."""
    return dim if dim in axis_of.values() else dim.removeprefix("_")


def _range_fix(axis: str, suggestion: str) -> str:
    low = re.search(r"min=(\d+)", suggestion)
    high = re.search(r"max=(\d+)", suggestion)
    if low or high:
        bounds = [f"min={low[1]}" if low else "", f"max={high[1]}" if high else ""]
        return f"give the range that it holds for: Axis({axis!r}, {', '.join(filter(None, bounds))})"
    if multiple := re.fullmatch(r"(\d+)\*\w+", suggestion.strip()):
        return f"Axis({axis!r}, multiple_of={multiple[1]}, ...)"
    return f"narrow Axis({axis!r}), set its multiple_of, or change the line so that it holds for every size"


def _unexplained(error: Exception, message: str) -> ExportError:
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    fix = ""
    if "Unsupported input type" in message or "not a known type" in message or "Cache" in message:
        fix = "for a Hugging Face model pass use_cache=False"
    return ExportError(
        "torch.export",
        got=f"{type(error).__name__}: {first}",
        fix=fix or "the exception below has torch's whole account",
        source=user_source(error),
    )
