"""Everything reachable from a module that a call may change, by value.

Enters: a module. Leaves: its values, and a snapshot that puts them back. Separate because capture looks for what one
call changes, and `undisturbed` undoes it.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.hashable_sizes import hashable_sizes

__all__ = [
    "ModelSnapshot",
    "StateEntry",
    "holds_others",
    "is_shared_by_copies",
    "state_entries",
    "state_values",
    "version_of",
]

_CONTAINERS: tuple[type, ...] = (dict, list, set, deque)
_NOT_STATE: tuple[type, ...] = (
    *(type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(torch.Tensor, np.ndarray, torch.Generator, random.Random, np.random.Generator, np.random.RandomState),
    *(torch.optim.Optimizer, torch.utils.data.Dataset, torch.utils.data.DataLoader),
)
# Objects of these packages refer to things outside of the model: trainers, locks, loggers and the interpreter.
_FOREIGN_PACKAGES = frozenset(
    {
        *("asyncio", "concurrent", "functools", "importlib", "inspect", "lightning", "logging", "multiprocessing"),
        *("pytorch_lightning", "threading", "typing", "weakref"),
    }
)
_COPIED: tuple[type, ...] = (
    *(np.ndarray, np.random.Generator, np.random.RandomState, random.Random),
    *(types.MethodType, functools.partial),  # methods of the copy, where the originals are bound to a part of the model
)
_SCALARS = (type(None), bool, int, float, complex, str, bytes)


@dataclass(frozen=True)
class StateEntry:
    """One value that is reachable from a module.

    Args:
        path: as the user would write it, e.g. "layer.cache['last']".
        container: the dict, list or deque that holds it; None where it can't be replaced.
        key: its key or index in the container.
        value: the value itself.
    """

    path: str
    container: Any
    key: Any
    value: Any


def state_entries(model: nn.Module) -> Iterator[StateEntry]:
    """Give all values below the attributes of `model` and its submodules; every container comes once."""
    seen: set[int] = set()
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    pending = deque(StateEntry(name, None, None, module) for name, module in modules)
    while pending:
        entry = pending.popleft()
        below = _below(entry.value)
        if below is None:
            yield entry
        elif id(below) not in seen:
            seen.add(id(below))
            yield entry
            holder = None if isinstance(below, (tuple, set)) else below
            is_attributes = below is not entry.value
            for key, child in _items(below):
                pending.append(StateEntry(_path(entry.path, key, is_attributes), holder, key, child))


def _items(holder: Any) -> list[tuple[Any, Any]]:
    if _is_dict(holder):
        return list(holder.items())
    return list(enumerate(cast("Iterable[Any]", holder)))


def holds_others(value: Any) -> bool:
    """Tell whether `state_entries` also gives the values inside a value."""
    return _below(value) is not None


def is_shared_by_copies(value: Any) -> bool:
    """Tell whether a copy of a module takes a value as it is, such as a lock: it is neither container nor numbers."""
    return not holds_others(value) and not isinstance(value, _COPIED)


def _below(value: Any) -> Any:
    """The container, or the attributes of a plain object, in which other values lie; None for a leaf."""
    if isinstance(value, (*_CONTAINERS, tuple)):
        return value
    if isinstance(value, _NOT_STATE) or value.__class__.__module__.partition(".")[0] in _FOREIGN_PACKAGES:
        return None
    attributes = getattr(value, "__dict__", None)
    return attributes if _is_dict(attributes) else None


def _path(parent: str, key: Any, is_attribute: bool) -> str:
    if is_attribute:
        return f"{parent}.{key}" if parent else str(key)
    for registry in ("_parameters", "_buffers", "_modules"):
        if parent == registry or parent.endswith(f".{registry}"):
            return f"{parent.removesuffix(registry)}{key}"
    return f"{parent}[{key!r}]"


def state_values(model: nn.Module) -> dict[str, Any]:
    """A comparable mark of every value, by path: a fingerprint, a number, or a container's length."""
    values: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for entry in state_entries(model):
        value = entry.value
        if isinstance(value, torch.Tensor):
            values[entry.path] = (tuple(value.shape), value.dtype, value.device)
            if isinstance(value, nn.Parameter) and _has_words(value):
                # Far quicker than a fingerprint, and models have many parameters.
                words = value.detach().view(-1).view(torch.int64)
                values[entry.path] = (*values[entry.path], int(words.sum()))
            elif value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested):
                tensors[entry.path] = value.detach()
        elif isinstance(value, np.ndarray):
            values[entry.path] = None if value.dtype.hasobject else (value.shape, value.tobytes())
        elif isinstance(value, _SCALARS):
            values[entry.path] = (type(value), repr(value))
        elif isinstance(value, (*_CONTAINERS, tuple)):
            values[entry.path] = (type(value), len(value))
        elif (state := _generator_state(value)) is not None:
            values[entry.path] = repr(state.state)
    for path, number in fingerprints(tensors).items():
        values[path] = (*values[path], number)
    return values


def _has_words(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's memory can be read as 64-bit integers."""
    is_plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    if not is_plain or tensor.is_complex() or not tensor.is_contiguous() or type(tensor) is not nn.Parameter:
        return False
    size = tensor.element_size()
    return tensor.numel() * size % 8 == 0 and tensor.storage_offset() * size % 8 == 0


class ModelSnapshot:
    """Everything of a module that a forward pass or an export may change, and that can be put back.

    Parameters are left out: a copy of them may not fit into memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[torch.Tensor, int | None, torch.Tensor]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[_GeneratorState] = []
        seen: set[int] = set()
        for entry in state_entries(model):
            below = _below(entry.value)
            kept = entry.value if below is None else below
            if isinstance(kept, (*_SCALARS, tuple)) or id(kept) in seen:
                continue
            seen.add(id(kept))
            self._remember(kept)

    def _remember(self, value: Any) -> None:
        if isinstance(value, _CONTAINERS):
            self._containers.append((value, _contents(value)))
        elif isinstance(value, torch.Tensor):
            if not isinstance(value, nn.Parameter):
                self._tensors.append((value, version_of(value), value.detach().clone()))
        elif isinstance(value, np.ndarray):
            array = cast("NDArray[Any]", value)
            if array.flags.writeable and not array.dtype.hasobject:
                self._arrays.append((array, np.array(array)))
        elif (state := _generator_state(value)) is not None:
            self._generators.append(state)

    def restore(self) -> None:
        """Put everything back, including the identity of the objects in containers."""
        for container, contents in self._containers:
            _restore_contents(container, contents)
        for tensor, version, values in self._tensors:
            if version_of(tensor) != version or _values_differ(tensor, values):
                _restore_tensor(tensor, values)
                if version is not None:  # the old one, since a pending backward pass may hold the tensor
                    cast("Any", torch)._C._autograd._unsafe_set_version_counter((tensor,), (version,))
        for array, values in self._arrays:
            if array.shape == values.shape and array.tobytes() != values.tobytes():
                np.copyto(array, values)
        for generator in self._generators:
            generator.restore(generator.state)


@dataclass(frozen=True)
class _GeneratorState:
    """The state of a random generator, and the function that sets it."""

    state: Any
    restore: Callable[[Any], None]


def _generator_state(value: Any) -> _GeneratorState | None:
    if isinstance(value, torch.Generator):
        return _GeneratorState(value.get_state(), lambda state: value.set_state(state) and None)
    if isinstance(value, np.random.RandomState):
        return _GeneratorState(value.get_state(), value.set_state)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return _GeneratorState(bits.state, lambda state: setattr(bits, "state", state))
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return _GeneratorState(value.getstate(), value.setstate)
    return None


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; None where PyTorch doesn't count."""
    return None if tensor.is_inference() else tensor._version


def _restore_tensor(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if tensor.shape == values.shape:
        tensor.detach().copy_(values)
    else:  # resized in place
        tensor.data = values.clone()


def _values_differ(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    """Tell whether values changed without the version counter, as by writes through `.data`."""
    return not tensor.is_meta and tensor.layout is torch.strided and not torch.equal(tensor, values)


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _contents(container: Any) -> Any:
    return dict(container) if _is_dict(container) else list(cast("Iterable[Any]", container))


def _restore_contents(container: Any, contents: Any) -> None:
    if _is_dict(container):
        _restore_items(container, contents)
    elif len(container) != len(contents) or any(
        now is not before for now, before in zip(container, contents, strict=True)
    ):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(contents)


def _restore_items(mapping: dict[Any, Any], items: dict[Any, Any]) -> None:
    """Restore key by key; the mapping is never empty in between, since other threads may be calling the model."""
    with hashable_sizes():  # keys that a trace has left
        for name in [name for name in mapping if name not in items]:
            del mapping[name]
    for name, value in items.items():
        if name not in mapping or mapping[name] is not value:
            mapping[name] = value
