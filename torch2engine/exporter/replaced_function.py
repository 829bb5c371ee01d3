"""A function of another library, replaced for the time of a body.

Enters: a module and the name of its function. Leaves: the module as it was. Separate because models of several
libraries are traced with some of their functions replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["replaced"]


@contextmanager
def replaced(holder: Any, name: str, replacement_of: Callable[[Any], Any]) -> Generator[None]:
    """Replace the function of a module or class, if there is one.

    Args:
        holder: has the function; None, where the library is not imported.
        name: of the function.
        replacement_of: the function → what stands in its place.
    """
    function = getattr(holder, name, None)
    if function is None:
        yield
        return
    setattr(holder, name, replacement_of(function))
    try:
        yield
    finally:
        setattr(holder, name, function)
