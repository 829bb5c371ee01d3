"""Classes that PyTorch knows as pytrees, such as the caches of Hugging Face's models.

Enters: an object of a class that somebody registered with ``torch.utils._pytree`` for torch.export. Leaves: its parts
and a text with the rest, or the object again. Separate because this is another library's registry: torch is never
imported here, but found where it is loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch2engine.core.errors import InputError

__all__ = ["CONTEXT", "is_registered", "parts_of", "rebuild_registered"]

CONTEXT = "context"
"""The key of the text that stands behind an object's parts: what its class says of it beside them, as JSON."""

# Classes whose own package registers them on request. The request is made once such a class has turned up.
_REGISTERED_ON_DEMAND: dict[str, tuple[str, str]] = {
    "transformers.cache_utils:DynamicCache": (
        "transformers.integrations.executorch",
        "register_dynamic_cache_export_support",
    ),
}
_ANY_CACHE = ("transformers.exporters.exporter_dynamo", "register_pytree_node")


class _Context(str):
    """The text of `CONTEXT`. It equals another one but for what the object's tensors tell: devices and a batch's size.

    transformers writes both down; an engine's call may have others than the sample.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and _essence(self) == _essence(other)

    def __hash__(self) -> int:
        return hash(_essence(self))


def _essence(text: str) -> str:
    try:
        return json.dumps(_without_volatile(json.loads(text)), sort_keys=True)
    except ValueError:  # a constant of the user's
        return str(text)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        if items.get("_t") == "device":
            return None
        return {key: _without_volatile(item) for key, item in items.items() if key != "batch_size"}
    return [_without_volatile(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value


def is_registered(cls: type) -> bool:
    """Whether PyTorch has a class as a pytree; a cache of transformers is registered now, by transformers itself."""
    registry = _registry()
    if registry is None:
        return False
    if cls not in registry.SUPPORTED_NODES and cls.__module__ == "transformers.cache_utils":
        _register_cache(cls)
    return cls in registry.SUPPORTED_NODES


def _registry() -> Any:
    return sys.modules.get("torch.utils._pytree")


def _register_cache(cls: type) -> None:
    """Let transformers register one of its caches; nothing happens where its version can't."""
    known = _REGISTERED_ON_DEMAND.get(f"{cls.__module__}:{cls.__qualname__}")
    module, name = known or _ANY_CACHE
    try:
        register: Callable[..., None] = getattr(importlib.import_module(module), name)
        register(*(() if known else (cls,)))
    except (ImportError, AttributeError):
        return


def parts_of(value: Any) -> dict[str | int, Any]:
    """Take a registered object apart.

    Returns:
        its parts by name, and under `CONTEXT` the rest as a JSON text.

    Raises:
        InputError: the rest is no JSON, or an object that is rebuilt of these would be another one.
    """
    cls: type = value.__class__
    registry = _registry()
    node: Any = registry.SUPPORTED_NODES[cls]
    named: dict[str | int, Any] = {}
    if node.flatten_with_keys_fn is None:
        parts, context = node.flatten_fn(value)
        named.update((index, child) for index, child in enumerate(cast("Sequence[Any]", parts)))
    else:
        pairs, context = node.flatten_with_keys_fn(value)
        named.update((_name(key), child) for key, child in pairs)
    children = list(named.values())
    text = _context_text(cls, context)
    _require_lossless(value, lambda: node.unflatten_fn(children, context))
    return {**named, CONTEXT: text}


def rebuild_registered(cls: type, parts: Sequence[Any]) -> Any:
    """Make an object of its parts; the last is the text of `CONTEXT`."""
    registry = _registry()
    *children, text = parts
    decode = registry.SUPPORTED_SERIALIZED_TYPES[cls].from_dumpable_context
    context = json.loads(text)
    return registry.SUPPORTED_NODES[cls].unflatten_fn(children, decode(context) if decode else context)


def _name(key: Any) -> str | int:
    """The name in one of torch's key classes, which differ in the attribute that has it."""
    for attribute in ("key", "idx", "name"):
        if isinstance(name := getattr(key, attribute, None), (str, int)):
            return name
    return str(key)


def _context_text(cls: type, context: Any) -> str:
    serialized = _registry().SUPPORTED_SERIALIZED_TYPES.get(cls)
    encode = None if serialized is None else serialized.to_dumpable_context
    try:
        return _Context(json.dumps(encode(context) if encode else context, sort_keys=True))
    except TypeError as error:
        raise InputError(
            cls.__qualname__,
            got=f"a pytree context that is no JSON ({error})",
            allowed="one that can be saved",
            fix="register the class with to_dumpable_context and from_dumpable_context",
        ) from error


def _require_lossless(value: Any, rebuild: Callable[[], Any]) -> None:
    """Refuse an object with numbers that its registration forgets, such as how far a sliding cache has moved on."""
    own = dict(_numbers(value, "", set()))
    if not own or sys.modules["torch"].compiler.is_exporting():
        return
    rebuilt = dict(_numbers(rebuild(), "", set()))
    for path, number in own.items():
        if rebuilt.get(path) != number:
            raise InputError(
                type(value).__qualname__,
                got=f"{path.lstrip('.')} = {number}, of which its registration as a pytree makes {rebuilt.get(path)}",
                allowed="an object that its tensors tell all of",
                fix="pass the number as a tensor, or, for a sliding cache, no more tokens than its window holds",
            )


def _numbers(value: Any, path: str, seen: set[int]) -> Iterable[tuple[str, int]]:
    """The whole numbers among an object's attributes, by path."""
    if type(value) is int:
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("Sequence[Any]", value)):
            yield from _numbers(item, f"{path}[{index}]", seen)
    elif type(value).__module__.startswith("transformers.") and id(value) not in seen:
        seen.add(id(value))
        for name, item in value.__dict__.items():
            yield from _numbers(item, f"{path}.{name}", seen)
