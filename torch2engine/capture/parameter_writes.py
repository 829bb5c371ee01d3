"""Writes into parameters and their gradients, undone while a model runs.

Enters: a module and a call of it. Leaves: the same parameters and gradients, bit for bit, and the names of those that
the call wrote to. Separate from `model_state` because a copy of all parameters may not fit into memory. Here a tensor
is copied only before an operator writes into it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ParameterWrites", "parameter_writes_undone"]


@dataclass
class ParameterWrites:
    """The parameters and gradients that a call wrote to.

    Args:
        parameters: names of parameters.
        gradients: names of parameters whose gradients were added to.
    """

    parameters: list[str] = field(default_factory=list[str])
    gradients: list[str] = field(default_factory=list[str])


@contextmanager
def parameter_writes_undone(model: nn.Module) -> Generator[ParameterWrites]:
    """Run the body, and put back what it writes into the model's parameters and their gradients.

    It sees all operators that PyTorch declares as writing, also through `.data`, views and `out=`. It also sees that an
    assignment to `.data` gives a parameter other memory. It misses writes through NumPy or foreign kernels.

    Returns:
        what was written to; it is complete after the body.
    """
    writes = ParameterWrites()
    watched = list(_watched_tensors(model, writes))
    watch = _CopyBeforeWrite(watched)
    try:
        with watch:
            yield writes
    finally:
        for tensor in watched:
            if tensor.put_back():
                tensor.names.append(tensor.name)


@dataclass
class _WatchedTensor:
    """A parameter or a gradient, with its values from before the first write to it.

    Args:
        name: of the parameter.
        names: the list that takes the name if it was written to.
        tensor: the parameter or gradient itself.
        memory: another tensor on the same memory, without a version counter of its own.
        version: how often it was written to before.
        values: a copy, from the first write on.
    """

    name: str
    names: list[str]
    tensor: torch.Tensor
    memory: torch.Tensor
    version: int
    values: torch.Tensor | None = None

    def put_back(self) -> bool:
        """Put memory and values back; tell whether there was anything to put back."""
        is_elsewhere = self.tensor.data_ptr() != self.memory.data_ptr() or self.tensor.shape != self.memory.shape
        if is_elsewhere:
            self.tensor.data = self.memory
        if self.values is not None:
            self.memory.copy_(self.values)
            # A pending backward pass has seen these values under this version.
            cast("Any", torch)._C._autograd._unsafe_set_version_counter((self.tensor,), (self.version,))
        return is_elsewhere or self.values is not None


def _watched_tensors(model: nn.Module, writes: ParameterWrites) -> Iterator[_WatchedTensor]:
    """Give the parameters and gradients that can be watched, those with dense memory of their own."""
    for name, parameter in model.named_parameters():
        if _is_dense(parameter):
            yield _WatchedTensor(name, writes.parameters, parameter, parameter.data, parameter._version)
        if parameter.grad is not None and _is_dense(parameter.grad):
            grad = parameter.grad
            yield _WatchedTensor(name, writes.gradients, grad, grad.data, grad._version)


def _is_dense(tensor: torch.Tensor) -> bool:
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and not is_lazy(tensor)
    return is_plain and tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_inference())


class _CopyBeforeWrite(TorchDispatchMode):
    """Copies a watched tensor before the first operator that writes into its memory.

    Args:
        watched: the tensors.
    """

    supports_higher_order_operators = True  # torch.cond and the like, which write into no argument

    def __init__(self, watched: Sequence[_WatchedTensor]) -> None:
        super().__init__()
        self._by_memory: dict[int, list[_WatchedTensor]] = {}
        for tensor in watched:
            self._by_memory.setdefault(tensor.memory.untyped_storage().data_ptr(), []).append(tensor)
        self._by_memory.pop(0, None)  # an empty tensor has no memory
        self._written_arguments: dict[Any, tuple[Any, ...]] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.cond compile without this mode: what Dynamo compiles under a mode fails later (torch 2.13)."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func not in self._written_arguments:
            self._written_arguments[func] = _written_arguments(func)
        for index, name in self._written_arguments[func]:
            value: Any = args[index] if index < len(args) else named.get(name)
            if isinstance(value, (list, tuple)):
                for tensor in cast("Sequence[object]", value):
                    self._copy(tensor)
            else:
                self._copy(value)
        return func(*args, **named)

    def _copy(self, target: object) -> None:
        if not isinstance(target, torch.Tensor) or target.layout is not torch.strided or target.is_meta:
            return
        for watched in self._by_memory.get(target.untyped_storage().data_ptr(), ()):
            if watched.values is None:
                watched.values = watched.memory.clone()


def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """The index and name of each argument that an operator writes into; none for one without a schema."""
    schema: Any = getattr(func, "_schema", None)
    arguments = enumerate(schema.arguments) if schema is not None else ()
    return tuple(
        (index, argument.name)
        for index, argument in arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
