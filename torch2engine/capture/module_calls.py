"""One call of a model → what each of its modules returned.

Enters: the model and a call of it. Leaves: a `ModuleCall` for every module that ran, in the order in which they ended.
Separate because only a search for the module that is answered wrongly looks inside a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["ModuleCall", "record_module_calls"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module.

    Args:
        path: the module's path in the model; "" is the model itself.
        outputs: copies of the tensors that it returned, in order, on the CPU.
        inputs_from: paths of the modules that returned the tensors that it was called with.
    """

    path: str
    outputs: tuple[torch.Tensor, ...]
    inputs_from: tuple[str, ...]


class _Recorder:
    """Hooks of all modules write here."""

    def __init__(self) -> None:
        self.calls: list[ModuleCall] = []
        self._made_by: dict[int, str] = {}  # id of a tensor -> the module that returned it last
        self._alive: list[torch.Tensor] = []  # so that no id is used again

    def hook(self, path: str) -> Callable[..., None]:
        """A forward hook for the module at this path."""

        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            makers = [self._made_by.get(id(tensor)) for tensor in _tensors((args, kwargs))]
            outputs = _tensors(output)
            # A copy, since a later module may write into the same memory.
            copies = tuple(tensor.detach().to("cpu", copy=True) for tensor in outputs)
            self.calls.append(ModuleCall(path, copies, tuple(maker for maker in makers if maker is not None)))
            self._alive += outputs
            self._made_by.update((id(tensor), path) for tensor in outputs)

        return record


def record_module_calls(model: nn.Module, call: Callable[[], object]) -> tuple[ModuleCall, ...]:
    """Run a call of the model, and record what each module returned.

    Args:
        model: gets forward hooks, which are removed again.
        call: calls the model once.
    """
    recorder = _Recorder()
    untyped: Any = model  # named_modules() has half a type
    handles = [
        module.register_forward_hook(recorder.hook(path), with_kwargs=True) for path, module in untyped.named_modules()
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(recorder.calls)


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves: Iterable[Any] = tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
