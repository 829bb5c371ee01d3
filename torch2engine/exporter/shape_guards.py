"""What torch.export decided about dynamic axes while it traced, and its refusals in the user's words.

Enters: torch's log of symbolic shapes, and its exceptions. Leaves: `DynamicAxisError` or `ExportError` with the axis's
name and the user's line. Beside `export` because torch's messages name internal symbols and, mostly, no line.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path

from torch2engine.capture.source_lines import innermost_user_frame, user_source
from torch2engine.core.errors import DynamicAxisError, ExportError, Torch2EngineError

__all__ = ["Guards", "record_guards", "tied", "translate"]

# torch/fx/experimental/symbolic_shapes.py logs each decision at INFO while the user's frame is still on the stack
# (seen in torch 2.9 to 2.13). If these texts change, sources become empty and nothing else.
_LOGGER = "torch.fx.experimental.symbolic_shapes"
_EXPORT = str(Path(__file__).with_name("export.py"))  # whose wrapper's forward calls the model's
_CREATED = re.compile(r"create_symbol (\w+) = \S+ for L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_GUARDED = re.compile(r"eval (?!\[guard suppressed\])(.+?) \[guard added\]")
_PINNED = re.compile(r"set_replacement (\w+) = (\d+) ")


@dataclass
class Guards:
    """Where each symbol came from and which of the user's lines constrained it."""

    symbols: dict[str, tuple[int, int]] = field(default_factory=dict[str, "tuple[int, int]"])
    lines: list[tuple[str, str, bool]] = field(default_factory=list["tuple[str, str, bool]"])

    def filter(self, record: logging.LogRecord) -> bool:
        """Read one log record; only errors go further, since torch prints whole graphs as warnings."""
        message = record.getMessage()
        if created := _CREATED.search(message):
            self.symbols[created[1]] = (int(created[2]), int(created[3]))
        elif pinned := _PINNED.search(message):
            self.lines.append((pinned[1], _source_now(), True))
        elif guarded := _GUARDED.search(message):
            self.lines.append((guarded[1], _source_now(), False))
        return record.levelno >= logging.ERROR

    def source(self, axis_of: Mapping[tuple[int, int], str], axis: str) -> str:
        """The line that pinned `axis`, else the first that constrained it, else ""."""
        symbols = [symbol for symbol, dim in self.symbols.items() if axis_of.get(dim) == axis]
        if not symbols:
            return ""
        word = re.compile(r"\b(" + "|".join(symbols) + r")\b")
        matching = [(source, pinned) for text, source, pinned in self.lines if source and word.search(text)]
        return next((s for s, pinned in matching if pinned), matching[0][0] if matching else "")


def _source_now() -> str:
    """The user's line in the model's forward; torch decides outside it too, where the last line is that of the call."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_stack(inspect.currentframe())]
    inside = [(code.co_filename, line) for code, line in takewhile(lambda f: f[0].co_filename != _EXPORT, frames)]
    return innermost_user_frame(inside[::-1])


@contextmanager
def record_guards() -> Generator[Guards]:
    """Collect torch's shape decisions while the body exports."""
    guards = Guards()
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.addFilter(guards.filter)
    logger.setLevel(logging.INFO)
    try:
        yield guards
    finally:
        logger.setLevel(level)
        logger.removeFilter(guards.filter)


_SPECIALIZED = re.compile(r"marked (?:\d+\*)?(\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RANGE = re.compile(r"Not all values of (\w+) = .*? satisfy the generated guard (.+?)\.?$", re.M)
_EQUAL = re.compile(r"The values of (\w+) = .*? and (\w+) = .*? must always be equal")
_SUGGESTED = re.compile(r"^  (\w+) = (.+)$", re.M)
_DATA = re.compile(r"Could not guard on data-dependent expression|data-dependent", re.I)
_SIZE = re.compile(r"L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")


def translate(error: Exception, guards: Guards, axis_of: Mapping[tuple[int, int], str]) -> Torch2EngineError:
    """Say in the user's words why torch.export refused.

    Args:
        error: what torch.export raised.
        guards: its decisions until then.
        axis_of: (leaf index, dimension) -> axis name.
    """
    if isinstance(error, Torch2EngineError):
        return error
    message = str(error)
    if _DATA.search(message):
        return ExportError(
            "torch.export",
            got="a branch or a shape depends on a tensor's values",
            allowed="control flow that does not look into tensors",
            fix="use torch.where for a choice of values, torch.cond for a branch, torch.clamp for a bound",
            source=user_source(error),
        )
    if found := (_specialized(message, guards, axis_of) or _equal(message, guards, axis_of)):
        return found
    if ranged := _RANGE.search(message):
        name = _axis(ranged[1], axis_of)
        condition = _SIZE.sub(lambda m: axis_of.get((int(m[1]), int(m[2])), m[0]), ranged[2])
        suggestions = dict[str, str](_SUGGESTED.findall(message))
        suggestion = suggestions.get(name) or suggestions.get(f"_{name}", "")
        return DynamicAxisError(
            f"axis '{name}'",
            axis=name,
            got="the model does not hold for all of its range",
            allowed=f"the model needs {condition}",
            fix=_range_fix(name, suggestion),
            source=guards.source(axis_of, name),
        )
    return _other(error, message)


def _specialized(message: str, guards: Guards, axis_of: Mapping[tuple[int, int], str]) -> DynamicAxisError | None:
    match = _SPECIALIZED.search(message)
    if not match:
        return None
    axis = _axis(match[1], axis_of)
    return DynamicAxisError(
        f"axis '{axis}'",
        axis=axis,
        got="the model pins it down",
        allowed=f"the model works only with {axis} = {match[2]}",
        fix=f"compute with x.shape or -1 instead of a fixed size there, or leave '{axis}' out of dynamic_axes",
        source=guards.source(axis_of, axis),
    )


def _equal(message: str, guards: Guards, axis_of: Mapping[tuple[int, int], str]) -> DynamicAxisError | None:
    match = _EQUAL.search(message)
    if not match:
        return None
    first, second = (_axis(name, axis_of) for name in match.groups())
    return tied(first, second, partial(guards.source, axis_of))


def tied(one: str, other: str, source_of: Callable[[str], str]) -> DynamicAxisError:
    """Two axes that the model needs to be equal."""
    first, second = sorted((one, other))
    return DynamicAxisError(
        f"axes '{first}' and '{second}'",
        axis=second,
        got="the model needs them to be equal",
        allowed="one name for sizes that are always equal",
        fix=f"call both '{first}' in dynamic_axes",
        source=source_of(second) or source_of(first),
    )


def _axis(dim: str, axis_of: Mapping[tuple[int, int], str]) -> str:
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


def _other(error: Exception, message: str) -> ExportError:
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
