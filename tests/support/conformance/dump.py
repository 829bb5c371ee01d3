"""Write down the API of one TensorRT bindings package as JSON; run as a script in a process of its own.

Enters: the folder of an unpacked bindings wheel and its package's name; the loader finds the stub libraries. Leaves:
classes, bases, methods with every overload, properties, enum members and functions, on stdout. A room of its own
because two versions of the bindings can't live in one process, and because it must run without any other package.

    python -S -E dump.py FOLDER PACKAGE
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from types import ModuleType
from typing import Any

_OPEN, _CLOSE = "([{", ")]}"


def split(text: str, separator: str) -> list[str]:
    """Cut a text at a separator outside every bracket and quote, e.g. parameters at their commas."""
    parts, depth, quote, start = [], 0, "", 0
    for position, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _OPEN or (sign == "<" and separator == ","):
            depth += 1
        elif sign in _CLOSE or (sign == ">" and separator == "," and text[position - 1] != "-"):
            depth -= 1
        elif depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position])
            start = position + len(separator)
    return [*parts, text[start:]]


def parameter(text: str) -> dict[str, Any]:
    """Read one parameter of a docstring signature: name, type, kind, and whether it may be left out."""
    stars = len(text) - len(text.lstrip("*"))
    declared, *default = split(text, " = ")
    name, _, kind = declared.lstrip("*").partition(":")
    return {"name": name.strip(), "type": kind.strip(), "stars": stars, "optional": bool(default)}


def closing(text: str, start: int) -> int:
    """Find the bracket that closes the one at `start`; -1 if none does."""
    depth, quote = 0, ""
    for position in range(start, len(text)):
        sign = text[position]
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _OPEN:
            depth += 1
        elif sign in _CLOSE:
            depth -= 1
            if not depth:
                return position
    return -1


def overloads(doc: str | None, name: str, prefix: str) -> list[dict[str, Any]]:
    """Read the signatures that pybind11 puts into a docstring, e.g. ``f(self: m.A, x: int = 0) -> m.B``.

    Args:
        doc: the docstring.
        name: the function's name; "" for a property's getter or setter.
        prefix: the extension module's name with a dot, taken off every type.

    Returns:
        one {"parameters", "returns"} per overload; empty if the docstring holds none.
    """
    found: list[dict[str, Any]] = []
    overloaded = "Overloaded function." in (doc or "")
    for line in (doc or "").splitlines():
        head = re.match(rf"(\d+\. )?{re.escape(name)}\(", line)
        if not head or bool(head[1]) != overloaded:
            continue
        end = closing(line, head.end() - 1)
        if end < 0 or not line[end + 1 :].startswith(" -> "):
            continue
        inside = line[head.end() : end].replace(prefix, "")
        listed = [parameter(part.strip()) for part in split(inside, ",") if part.strip() not in ("", "/")]
        found.append({"parameters": listed, "returns": line[end + 5 :].strip().replace(prefix, "")})
        if not overloaded:
            break
    return found


def python_overload(function: Any) -> list[dict[str, Any]]:
    """Read the signature of a function that the bindings define in Python."""
    listed = [
        {
            "name": each.name,
            "type": "",
            "stars": {each.VAR_POSITIONAL: 1, each.VAR_KEYWORD: 2}.get(each.kind, 0),
            "optional": each.default is not each.empty,
        }
        for each in inspect.signature(function).parameters.values()
    ]
    return [{"parameters": listed, "returns": ""}]


def hooks(doc: str | None) -> dict[str, Any]:
    """Read the methods that a class's docstring tells its users to define: some of them are no members."""
    found = re.findall(r"^ +def ([a-z]\w*)\(([^)]*)\):", doc or "", re.MULTILINE)
    return {
        name: [{"parameters": [parameter(part.strip()) for part in inside.split(",")], "returns": ""}]
        for name, inside in found
    }


class Dump:
    """The dump of one package, class by class."""

    def __init__(self, package: ModuleType) -> None:
        self.package = package
        extension = sys.modules[package.Builder.__module__]
        self.prefix = extension.__name__ + "."
        self.classes: dict[str, Any] = {}

    def type_name(self, value: object) -> str:
        """Name a value's type: the bindings' own by its path below the module, others as Python calls them."""
        kind = type(value)
        return kind.__qualname__ if kind.__module__ + "." == self.prefix else kind.__name__

    def member(self, name: str, value: Any) -> dict[str, Any]:
        """Describe one attribute of a class or of the module."""
        if inspect.isclass(value):
            self.visit(value)
            return {"kind": "class", "type": value.__qualname__}
        if isinstance(value, property):
            getter = overloads(value.fget.__doc__, "", self.prefix) if value.fget else []
            # pybind11 leaves an enum member's name without a signature.
            kind = getter[0]["returns"] if getter else {"name": "str", "itemsize": "int"}.get(name, "")
            read, write = value.fget is not None, value.fset is not None
            return {"kind": "property", "type": kind, "read": read, "write": write}
        static = isinstance(value, staticmethod)
        function = value.__func__ if isinstance(value, staticmethod) else value
        if inspect.isfunction(function):
            return {"kind": "method", "overloads": python_overload(function), "static": static}
        if callable(function) and type(function).__name__ in ("instancemethod", "builtin_function_or_method"):
            return {"kind": "method", "overloads": overloads(function.__doc__, name, self.prefix), "static": static}
        return {"kind": "value", "type": self.type_name(value)}

    def visit(self, cls: type) -> None:
        """Describe a class and, through its members, the classes in it."""
        if cls.__qualname__ in self.classes or cls.__module__ + "." != self.prefix:
            return
        members: dict[str, Any] = {}
        self.classes[cls.__qualname__] = {
            "bases": [base.__qualname__ for base in cls.__bases__ if base.__module__ + "." == self.prefix],
            "members": members,
            "hooks": hooks(cls.__doc__),
        }
        for name, value in vars(cls).items():
            members[name] = self.member(name, value)

    def whole(self) -> dict[str, Any]:
        """Describe the package."""
        names = {name: self.member(name, value) for name, value in vars(self.package).items()}
        return {"version": self.package.__version__, "names": names, "classes": self.classes}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    json.dump(Dump(importlib.import_module(sys.argv[2])).whole(), sys.stdout)
