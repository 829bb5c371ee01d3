"""The user's line of each decision of torch.export about dynamic axes.

Enters: torch's log of symbolic shapes. Leaves: the line of each decision. Separate because torch's messages name
internal symbols and, mostly, no line.
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
from typing import Any

from torch2engine.capture.source_lines import innermost_user_frame

__all__ = ["AxisOfDimension", "ShapeGuard", "ShapeGuards", "record_guards"]

AxisOfDimension = Mapping[tuple[int, int], str]  # (index of the input, dimension) -> its size in the signature

# torch/fx/experimental/symbolic_shapes.py logs each decision at INFO while the user's frame is still on the stack
# (seen in torch 2.9 to 2.13). If these texts change, sources become empty and nothing else: which dimension a symbol
# stands for is read from torch's ShapeEnv.
_LOGGER = "torch.fx.experimental.symbolic_shapes"
_ENDS_OF_FORWARD = {str(Path(__file__).parent.with_name(name)) for name in ("flat_module.py", "trace.py")}
_DIMENSION = re.compile(r"L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_CREATED = re.compile(rf"create_symbol (\w+) = \S+ for {_DIMENSION.pattern}")
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
        if created := _CREATED.search(message):  # read_symbols has them too, but for those that became numbers
            self.dimension_of[created[1]] = (int(created[2]), int(created[3]))
        elif pinned := _PINNED.search(message):
            self.guards.append(ShapeGuard(pinned[1], _current_user_line(), is_pinned=True))
        elif guarded := _GUARDED.search(message):
            self.guards.append(ShapeGuard(guarded[1], _current_user_line(), is_pinned=False))
        return record.levelno >= logging.ERROR

    def read_symbols(self, environment: Any) -> None:
        """Note which dimension each symbol stands for.

        Args:
            environment: torch's ShapeEnv of the export.
        """
        for source, symbol in environment.source_to_var.items():
            if found := _DIMENSION.fullmatch(source):
                self.dimension_of[str(symbol)] = (int(found[1]), int(found[2]))

    @property
    def axis_of_symbol(self) -> dict[str, str]:
        """The axis of each of torch's symbols."""
        return {
            symbol: self.axis_of[dimension]
            for symbol, dimension in self.dimension_of.items()
            if dimension in self.axis_of
        }

    def source_of_condition(self, condition: str) -> str:
        """The line that made torch decide on this condition, or ""."""
        return next((guard.source for guard in self.guards if guard.condition == condition and guard.source), "")

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
    the walk ends at the flat module's forward, or at the call of torch.export.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(inspect.currentframe())]
    in_forward = list(takewhile(lambda frame: frame[0] not in _ENDS_OF_FORWARD, frames))
    return innermost_user_frame(in_forward[::-1])


def _always(level: int) -> bool:
    del level
    return True


@contextmanager
def record_guards(axis_of: AxisOfDimension) -> Generator[ShapeGuards]:
    """Collect torch's shape decisions while the body exports.

    Args:
        axis_of: the axis of each dynamic dimension.
    """
    guards = ShapeGuards(axis_of)
    logger: Any = logging.getLogger(_LOGGER)
    was_disabled = logger.disabled
    logger.addFilter(guards.read_record)
    # The records are needed even after logging.disable() or dictConfig(), which users call for their own logs.
    logger.disabled = False
    logger.isEnabledFor = _always
    try:
        yield guards
    finally:
        del logger.isEnabledFor
        logger.disabled = was_disabled
        logger.removeFilter(guards.read_record)
