"""The folder of this package, and the module name that its public classes show.

Enters: public classes. Leaves: the package's folder, and classes that name the package as their module. Separate so
that all code agrees on which lines belong to the package, and on the names of its classes.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, TypeVar

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
    names = vars(sys.modules[cls.__module__])
    cls.__annotations__ = {name: _resolved(hint, names) for name, hint in inspect.get_annotations(cls).items()}
    cls.__module__ = "torch2engine"
    return cls


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation names; Any for one that only type checkers import."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)  # the source of this package, as inspect.get_annotations(eval_str=True) does
    except NameError:
        return Any
