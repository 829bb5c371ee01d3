"""The folder of this package, and the module name that its public classes show.

Enters: public classes. Leaves: the package's folder, and classes that name the package as their module. Separate so
that all code agrees on which lines belong to the package, and on the names of its classes.
"""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import TypeVar

__all__ = ["PACKAGE_ROOT", "public"]

PACKAGE_ROOT = Path(__file__).parents[1]

C = TypeVar("C", bound=type)


def public(cls: C) -> C:
    """Let a public class name the package as its module.

    Tracebacks then read ``torch2engine.ShapeError``, and pickles survive a move of the class to another file.
    `inspect.getsource` then finds the source of its methods, but not of the class.

    Args:
        cls: a class in ``torch2engine.__all__``.

    Returns:
        the same class.
    """
    # typing.get_type_hints would look up the names of string annotations in `__module__`, where they are not.
    with contextlib.suppress(NameError):  # a name that only type checkers import
        cls.__annotations__ = inspect.get_annotations(cls, eval_str=True)
    cls.__module__ = "torch2engine"
    return cls
