"""The dynamic loader's words → what they mean.

Enters: the text of a failed import. Leaves: the kind of failure, and the library at fault. Separate because TensorRT,
ONNX Runtime, torch and pycuda all fail in these words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LoaderError", "read_loader_error"]

_FORMS = {
    "missing": re.compile(r"(?P<library>[\w.+-]+\.so[\w.]*): cannot open shared object file"),
    "damaged": re.compile(r"(?P<library>\S+): (invalid ELF header|file too short)"),
    "foreign": re.compile(r"(?P<library>\S+): wrong ELF class"),
    "symbol": re.compile(r"(?P<library>\S+): undefined symbol: (?P<detail>\w+)"),
    "system": re.compile(r"version [`'](?P<detail>(GLIBC|GLIBCXX|CXXABI)_[\w.]+)' not found .*by (?P<library>\S+)\)"),
}


@dataclass(frozen=True)
class LoaderError:
    """One complaint of the loader.

    Args:
        kind: "missing" for a library that is not found; "damaged" for a file that is no library; "foreign" for one of
            another kind of machine; "symbol" for one of another version; "system" for a C library that is too old.
        library: the file at fault, or the one that needs what is missing.
        detail: the symbol or version that is missing, or "".
    """

    kind: str
    library: str
    detail: str = ""


def read_loader_error(text: str) -> LoaderError | None:
    """Read an error's text; None if it is not the loader's.

    >>> read_loader_error("ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory")
    LoaderError(kind='missing', library='libnvinfer.so.10', detail='')
    """
    for kind, form in _FORMS.items():
        if match := form.search(text):
            groups = match.groupdict()
            return LoaderError(kind, groups["library"], groups.get("detail") or "")
    return None
