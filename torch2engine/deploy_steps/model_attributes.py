"""The values that a module's attributes reach, as facts. Two models with equal facts answer alike.

Enters: a module. Leaves: JSON values and tensors by path, or the path of a value that can't be compared.
Separate because this file knows Python's objects, and caches do not matter to it.

Code counts by its name only: the caller's cache_key stands for it.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import logging
import pathlib
import re
import threading
import types
import uuid
import weakref
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from torch2engine.core.errors import InputError

__all__ = ["ModelAttributes"]

_MOST_VALUES = 1_000_000
_NUMBERS_AND_TEXTS = (int, float, complex, str)
_PLAIN_TYPES = (type(None), bool, *_NUMBERS_AND_TEXTS, range, slice, type(Ellipsis), type(NotImplemented))
_WHOLE_IN_REPR = (  # repr() of these types shows the whole value
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, pathlib.PurePath, re.Pattern),
    *(np.dtype, types.GenericAlias, types.UnionType, type(torch.ops.aten.add), type(torch.ops.aten.add.Tensor)),
    *(datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID),
)
_WITHOUT_INFLUENCE = (logging.Logger, type(threading.Lock()), type(threading.RLock()), threading.local)
_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType),
    *(types.MethodDescriptorType, type(functools.cache(len))),
)
# Attributes that other code compares: parameters, buffers and children. deploy() sets the mode itself.
_COMPARED_ELSEWHERE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
_WORD_BYTES = 8


class ModelAttributes:
    """The attributes of a module and of everything inside it, but for its registered parameters and buffers.

    Attributes:
        facts: path -> JSON values.
        tensors: path -> tensor.

    Raises:
        InputError: a value that can't be compared with another one; the message and `name` hold its path.
    """

    def __init__(self, model: nn.Module) -> None:
        self.facts: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self._registered = {id(module) for module in model.modules()}
        named = (*model.named_parameters(), *model.named_buffers())
        self._paths = {id(tensor): f"registered {name}" for name, tensor in named}
        self._visited: list[object] = []  # keeps the objects alive, since another object could get the id of a dead one
        self._to_visit: list[tuple[str, Any]] = [("model", model)]
        while self._to_visit:
            path, value = self._to_visit.pop()
            self._visit(path, value)

    def _visit(self, path: str, value: Any) -> None:
        text = _plain_text(value)
        if text is not None:
            self.facts[path] = text
            return
        if isinstance(value, _WITHOUT_INFLUENCE):
            return
        earlier = self._paths.setdefault(id(value), path)
        self._visited.append(value)
        if earlier != path:
            self.facts[path] = ["same as", earlier]
        elif len(self._visited) > _MOST_VALUES:
            raise _refusal(path, "more values than can be compared")
        elif isinstance(value, torch.Tensor):
            self.tensors[path] = value
        elif _is_numeric_array(value):
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            self.facts[path] = ["array", value.dtype.str, list(value.shape), digest]
        else:
            children = _children(path, value)
            self.facts[path] = [_class_name(value), len(children)]
            if id(value) in self._registered:
                children = {name: child for name, child in children.items() if name not in _COMPARED_ELSEWHERE}
                children |= value._modules
            self._to_visit += [(f"{path}.{name}", child) for name, child in children.items()]


def _is_numeric_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and not cast("Any", value).dtype.hasobject


def _plain_text(value: Any) -> list[Any] | None:
    """A value without parts; None for any other."""
    kind = _class_name(value)
    if isinstance(value, enum.Enum):
        return [kind, value.name, repr(value.value)]
    if type(value) in _PLAIN_TYPES:
        return [kind, repr(value)]
    if isinstance(value, _WHOLE_IN_REPR):
        return [kind, repr(cast("object", value))]
    if isinstance(value, np.generic) and not cast("Any", value).dtype.hasobject:
        return [kind, cast("Any", value).dtype.str, value.tobytes().hex()]
    if isinstance(value, (bytes, bytearray)):
        return [kind, hashlib.sha256(value).hexdigest()]
    if isinstance(value, (type, types.ModuleType)):
        return [kind, getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)]
    if isinstance(value, fx.Graph):
        return [kind, str(value)]
    return None


def _children(path: str, value: Any) -> dict[str, Any]:
    """The parts of a value, by name. Two values of one class with equal parts are equal.

    Raises:
        InputError: the value holds state that Python can't read.
    """
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        return {"func": partial.func, "args": partial.args, "keywords": partial.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, "function": value.__func__}
    if isinstance(value, _FUNCTIONS):
        return _function_parts(value)
    if isinstance(value, types.CellType):
        return {"content": _cell_content(value)}
    if isinstance(value, (weakref.ref, weakref.WeakMethod)):
        return {"referent": cast("Any", value)()}
    parts: dict[str, Any] = {}
    for base in _NUMBERS_AND_TEXTS:
        if isinstance(value, base):  # of a class of the user's own
            parts["value"] = cast("Any", base)(value)
    if isinstance(value, defaultdict):
        parts["default_factory"] = cast("Any", value).default_factory
    if isinstance(value, (list, tuple, deque, np.ndarray)):
        items = cast("Sequence[Any]", value)
        parts |= {f"[{index}]": item for index, item in enumerate(items)}
    elif isinstance(value, (dict, types.MappingProxyType)):
        items = cast("Mapping[Any, Any]", value)
        parts |= {f"[{index}:{_key_text(path, key)}]": item for index, (key, item) in enumerate(items.items())}
    elif isinstance(value, (set, frozenset)):
        texts = sorted(_key_text(path, item) for item in cast("set[object]", value))
        parts |= {f"{{{index}}}": text for index, text in enumerate(texts)}
    elif not parts and not _is_transparent(value):
        kind = _class_name(cast("object", value))
        raise _refusal(path, f"a value of {kind}, whose content Python can't read")
    return parts | _own_attributes(cast("object", value))


def _function_parts(function: Any) -> dict[str, Any]:
    return {
        "name": f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__module__") else repr(function),
        "self": getattr(function, "__self__", None),
        "closure": getattr(function, "__closure__", None),
        "defaults": getattr(function, "__defaults__", None),
        "keyword_defaults": getattr(function, "__kwdefaults__", None),
    }


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _own_attributes(value: Any) -> dict[str, Any]:
    """The instance's dictionary and slots."""
    own = {str(name): item for name, item in getattr(value, "__dict__", {}).items()}
    if isinstance(value, nn.Module):  # the keys of hooks are numbers of this process
        hooks = {name: list(item.values()) for name, item in own.items() if name.endswith("_hooks") and item}
        own |= hooks
    for name in _slots(cast("type", type(value))):
        if hasattr(value, name):
            own[name] = getattr(value, name)
    return own


def _slots(cls: type) -> list[str]:
    found: list[str] = []
    for base in cls.__mro__:
        slots: Any = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _is_transparent(value: object) -> bool:
    """Whether an object consists of its dictionary and slots, without state in a C library."""
    cls = type(value)
    if cls is object:
        return True
    seen = len(_slots(cls)) + 2  # a dictionary and weak references
    has_parts = hasattr(value, "__dict__") or bool(_slots(cls))
    return has_parts and cls.__basicsize__ <= object.__basicsize__ + seen * _WORD_BYTES


def _key_text(path: str, key: object) -> str:
    """A key or an element of a set: a value without parts, or a tuple of such values."""
    text = _plain_text(key)
    if text is not None:
        return repr(text)
    if isinstance(key, (tuple, frozenset)):
        items = [_key_text(path, item) for item in cast("Sequence[object]", key)]
        in_order = items if isinstance(key, tuple) else sorted(items)
        return f"{_class_name(cast('object', key))}({', '.join(in_order)})"
    raise _refusal(path, f"a key of {_class_name(key)}")


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _refusal(path: str, got: str) -> InputError:
    name = path.partition(".")[2] or path
    return InputError(
        f"model attribute '{name}'",
        name=name,
        got=got,
        allowed="numbers, texts, tensors, arrays, containers and Python objects of these, which cache_key compares",
        fix="take it out of the model, or leave out cache_key",
    )
