"""A module → a copy of it in evaluation mode, which computes with the very same parameters and buffers.

Enters: the user's module, in training or not. Leaves: a copy that follows new values of its weights, and nothing else
of it. Separate because a module that answers by PyTorch must not depend on training flags that other code sets. Nor may
it change the user's lists, counters or plain tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from torch2engine.capture.model_state import is_shared_by_copies, state_entries
from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.errors import RefitError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.wording import kind_of

__all__ = ["SharedCopy"]

_REGISTRIES = ("_parameters", "_buffers")


@dataclass
class _Place:
    """Where a weight is, in the model and in its copy.

    Args:
        path: as the user would write it.
        source: the registry of the model's submodule; others may put another tensor there.
        twin: the copy's submodule.
        name: the key in both.
        tensor: the one that is there.
        form: its shape, dtype and device, as it was deployed.
        layout: its address and strides, which a CUDA graph keeps.
    """

    path: str
    source: dict[str, Any]
    twin: nn.Module
    name: str
    tensor: torch.Tensor
    form: tuple[torch.Size, torch.dtype, torch.device]
    layout: tuple[int, tuple[int, ...]]

    @classmethod
    def of(cls, path: str, source: dict[str, Any], twin: nn.Module, name: str) -> _Place:
        tensor = source[name]
        return cls(path, source, twin, name, tensor, _form_of(tensor), _layout_of(tensor))


def _form_of(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _layout_of(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.stride()


class SharedCopy:
    """A copy of a module with the module's own parameters and buffers. Threads may share it.

    Args:
        model: is not kept alive, but its weights are. It is left as it was.

    Raises:
        ValueError: a class in the model copies its weights all the same.
        Exception: any of the classes in the model refuses to be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        copies: dict[int, Any] = {}  # by the id of the original, as copy.deepcopy looks them up
        weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        for entry in list(state_entries(model)):
            value = entry.value
            if id(value) in weights:
                copies[id(value)] = value
            elif isinstance(value, torch.Tensor):
                copies[id(value)] = value.detach().clone()
            elif is_shared_by_copies(value):
                copies[id(value)] = value
        self.module = copy.deepcopy(model, copies)
        for module in self.module.modules():
            module.__dict__["training"] = False  # models override .eval(), e.g. to merge adapters
        self._lock = ForkSafeLock()
        self._changes = 0
        self._places = list(_places(model, self.module))
        self._copied = [value for value in copies.values() if isinstance(value, torch.Tensor)]

    def refresh(self) -> int:
        """Take over weights that were put in the place of others, e.g. by an assignment or by `.data`.

        It costs a few tenths of a microsecond for each weight. New values in the same memory need nothing.

        Returns:
            how often there were any. Whoever has kept addresses must forget them when it goes up.

        Raises:
            RefitError: a weight has another shape, dtype or device than the one before, or is gone.
        """
        for place in self._places:
            tensor: Any = place.source.get(place.name)
            if tensor is not place.tensor or _layout_of(tensor) != place.layout:
                with self._lock:
                    self._replace(place, tensor)
        return self._changes

    def _replace(self, place: _Place, tensor: object) -> None:
        if not isinstance(tensor, torch.Tensor) or _form_of(tensor) != place.form:
            raise _refusal(place, tensor)
        # First: a thread that finds nothing to do in this place any more must see that there was something.
        self._changes += 1
        setattr(place.twin, place.name, tensor)  # modules such as nn.LSTM keep lists of their weights up to date by it
        place.tensor = tensor
        place.layout = _layout_of(tensor)

    def memory(self) -> set[int]:
        """The addresses of all tensors that the copy holds; views of one memory have one."""
        tensors = [*(place.tensor for place in self._places), *self._copied]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout is torch.strided}

    def devices(self) -> set[torch.device]:
        """The devices of the weights."""
        return {place.tensor.device for place in self._places}


def _places(model: nn.Module, twin: nn.Module) -> Iterator[_Place]:
    """Every weight of both, in the same order.

    Raises:
        ValueError: they do not share it.
    """
    modules = list(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))
    twins = list(twin.modules())
    if [type(module) for _, module in modules] != [type(module) for module in twins]:
        raise ValueError("its copy has other submodules")
    for (prefix, module), other in zip(modules, twins, strict=True):
        for registry in _REGISTRIES:
            source: dict[str, Any] = getattr(module, registry)
            for name, tensor in source.items():
                path = f"{prefix}.{name}" if prefix else name
                if getattr(other, registry).get(name) is not tensor:
                    raise ValueError(f"its copy has another weight '{path}'")
                if tensor is not None:
                    yield _Place.of(path, source, other, name)


def _refusal(place: _Place, tensor: object) -> RefitError:
    """The error for a weight that can't take the place of the one before."""
    shape, dtype, device = place.form
    got = kind_of(tensor)
    if isinstance(tensor, torch.Tensor):
        got = f"{dtype_name(tensor.dtype)}{list(tensor.shape)} on {tensor.device}"
    return RefitError(
        f"weight '{place.path}'",
        got=got,
        allowed=f"{dtype_name(dtype)}{list(shape)} on {device}, as when it was deployed: this module calls the model",
        fix="put such a weight there, or deploy the model again",
    )
