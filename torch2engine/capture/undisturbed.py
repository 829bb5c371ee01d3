"""Running a module without leaving a trace.

Enters: a live module, in training or not. Leaves: the same module, bit for bit, after whatever ran in between in
inference mode. Separate because deploy is called from training code and may not disturb it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch import nn

from torch2engine.capture.process_state import exact_arithmetic, process_state_lock, restored_random_state
from torch2engine.core.errors import ExportError

__all__ = ["training_flags_off", "undisturbed"]

_CONTAINERS: tuple[type, ...] = (dict, list, set, deque)


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Run the body with `model` in inference mode and put everything back afterwards, also after an error.

    Put back are: the training flag of every submodule, parameters, buffers and gradients (values and identity), Python
    attributes of every submodule and the containers in them, hooks, RNG state of Python, NumPy, CPU and GPUs,
    autocast, grad mode, the current device, the float32 switches and the attention backends.

    Raises:
        ExportError: the model's forward writes into its own parameters, which can't be undone.
    """
    with process_state_lock():
        snapshot = _ModuleSnapshot(model)
        with restored_random_state(), exact_arithmetic():
            try:
                with training_flags_off(model):
                    yield
            except Exception as error:
                snapshot.check_parameters(error)  # says more than an error that may follow from it
                raise
            finally:
                snapshot.restore()
    snapshot.check_parameters()


@contextmanager
def training_flags_off(model: nn.Module) -> Generator[None]:
    """Clear the training flag of every submodule, and set it as it was after the body."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            _set_training_flag(module, False)
        yield
    finally:
        for module, flag in flags:
            _set_training_flag(module, flag)


def _set_training_flag(module: nn.Module, flag: bool) -> None:
    module.__dict__["training"] = flag  # models override .train(), to merge adapters for instance: no way back


class _ModuleSnapshot:
    """Everything of a module that a forward pass or an export may change."""

    def __init__(self, model: nn.Module) -> None:
        self._containers = list(_containers_with_contents([module.__dict__ for module in model.modules()], set()))
        self._buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in model.buffers()]
        self._parameters = [(name, parameter, _version(parameter)) for name, parameter in model.named_parameters()]
        tensors = [*model.buffers(), *model.parameters()]
        self._grads = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]

    def restore(self) -> None:
        """Put back all but the parameters' values."""
        for container, contents in self._containers:
            _restore_contents(container, contents)
        for buffer, version, values in self._buffers:
            if _version(buffer) != version or _values_differ(buffer, values):
                buffer.detach().copy_(values)
                if version is not None:  # the old one, since a pending backward pass may hold the buffer
                    cast("Any", torch)._C._autograd._unsafe_set_version_counter((buffer,), (version,))
        for tensor, grad in self._grads:
            if tensor.grad is not grad:
                tensor.grad = grad

    def check_parameters(self, error: Exception | None = None) -> None:
        """Report a change that can't be undone.

        Args:
            error: that ended the body; it becomes the cause.

        Raises:
            ExportError: parameters were written to; names them.
        """
        changed = [name for name, parameter, version in self._parameters if _version(parameter) != version]
        if changed:
            raise ExportError(
                "model",
                got=f"its forward writes into its own parameters: {', '.join(changed)}; they keep the new values",
                allowed="a forward that only reads them",
                fix="move such updates out of forward",
            ) from error


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _values_differ(buffer: torch.Tensor, values: torch.Tensor) -> bool:
    """Tell whether values changed behind the version counter's back, as writes through `.data` do."""
    return not buffer.is_meta and buffer.layout is torch.strided and not torch.equal(buffer, values)


def _containers_with_contents(values: Iterable[Any], seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Every dict, list, set and deque among and below `values`, each with a copy of its contents.

    Models register modules, append to lists and fill caches while they run.
    """
    for value in values:
        if isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            contents: Any = dict(value) if _is_dict(value) else list(value)
            yield value, contents
            yield from _containers_with_contents(contents.values() if _is_dict(contents) else contents, seen)


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


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
    for name in [name for name in mapping if name not in items]:
        del mapping[name]
    for name, value in items.items():
        if name not in mapping or mapping[name] is not value:
            mapping[name] = value
