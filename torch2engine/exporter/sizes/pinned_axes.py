"""An axis that every trace pins → the error, with the user's line and what to write there instead.

Enters: an axis, and the line that made a number of it. Leaves: a `DynamicAxisError`. Separate because the fix depends
on the text of that line.
"""

from __future__ import annotations

import linecache
import re

from torch2engine.core.errors import DynamicAxisError

__all__ = ["becomes_a_number"]

_WAYS_OUT = (
    (
        re.compile(r"\bfor\b|\bwhile\b|\bunbind\b"),
        "a Python loop over an axis has one graph for each size: write it for the whole axis with PyTorch's operators, "
        "or with nn.LSTM, nn.GRU or torch.while_loop where a step needs the one before",
    ),
    (re.compile(r"\bmath\.(\w+)\("), "compute with a tensor: torch.tensor(size).{0}() instead of math.{0}(size)"),
    (re.compile(r"\b(int|float|len)\("), "leave x.shape[...] as it is there, without {0}()"),
)
_OTHERWISE = "compute with x.shape in tensors and shapes only there"


def becomes_a_number(axis: str, source: str) -> DynamicAxisError:
    """The error for an axis that becomes a Python number, whatever its size.

    Args:
        axis: its name.
        source: the user's "FILE:LINE", or "".
    """
    return DynamicAxisError(
        f"axis '{axis}'",
        axis=axis,
        got="a model that makes a Python number of its size, so that each size has another graph",
        allowed="sizes that stay in tensors and shapes",
        fix=f"{_way_out(source)}; or leave '{axis}' out of dynamic_axes",
        source=source,
    )


def _way_out(source: str) -> str:
    file, _, line = source.rpartition(":")
    text = linecache.getline(file, int(line)) if line.isdigit() else ""
    for pattern, way_out in _WAYS_OUT:
        if found := pattern.search(text):
            return way_out.format(*found.groups())
    return _OTHERWISE
