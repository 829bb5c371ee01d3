"""Calls of a module, recorded while the user's own code runs → its sample, its dynamic axes and its examples.

Enters: a live module. Leaves: `Recording`, which deploy() takes in the place of a model and its sample. Separate
because nothing is deployed here: what varies between calls is all that is learnt.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torch2engine.capture.signature import bind_sample
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.errors import InputError
from torch2engine.core.package import public
from torch2engine.core.pytree import Inputs, flatten, unflatten
from torch2engine.core.spec import Axis

__all__ = ["RecordedCall", "Recording", "record"]

_MOST_KEPT = 8  # calls whose tensors are kept, each of other sizes


@dataclass(frozen=True)
class RecordedCall:
    """One call whose tensors were kept.

    Args:
        inputs: copies of its arguments.
        shapes: of its tensors, by the input's name.
    """

    inputs: Inputs
    shapes: Mapping[str, tuple[int, ...]]


@public
@dataclass
class Recording:
    """The calls of one module; made by `record`.

    Args:
        model: the module.
        calls: those whose tensors were kept: the first of each size, eight at most.
        shapes: the shapes of the tensors of every call, by the input's name.
        fault: of the first call that can't be used: it does not fit forward, or differs in more than sizes and values.

    >>> with t2e.record(model) as recording:
    ...     for batch in (8, 1):
    ...         _ = model(sample[:batch])
    >>> [tuple(shapes["x"]) for shapes in recording.shapes]
    [(8, 3, 64, 64), (1, 3, 64, 64)]
    """

    model: nn.Module
    calls: list[RecordedCall] = field(default_factory=list[RecordedCall])
    shapes: list[Mapping[str, tuple[int, ...]]] = field(default_factory=list[Mapping[str, tuple[int, ...]]])
    fault: InputError | None = None
    _structure: Any = None

    def add(self, inputs: Inputs) -> None:
        """Take a call. One that can't be used does not disturb the caller; deploy() then says why."""
        try:
            self._add(inputs)
        except InputError as error:
            self.fault = self.fault or error

    def _add(self, inputs: Inputs) -> None:
        bound = bind_sample(self.model, inputs)
        structure = (tuple(bound.parameters), tuple(str(tensor.dtype) for tensor in bound.tensors))
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            raise InputError(
                "recorded calls",
                got="calls that differ in their arguments, constants or dtypes",
                allowed="calls that differ in the sizes and values of tensors alone",
                fix="record calls of one form, and pass numbers that vary as tensors",
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in bound.by_name.items()}
        if len(self.calls) < _MOST_KEPT and shapes not in self.shapes:
            self.calls.append(RecordedCall(_copied(inputs), shapes))
        self.shapes.append(shapes)

    @property
    def was_called(self) -> bool:
        """Whether there was a call at all."""
        return bool(self.shapes) or self.fault is not None

    @property
    def sample_input(self) -> Inputs:
        """The kept call whose sizes were met most often."""
        self._check()
        return max(self.calls, key=lambda call: self.shapes.count(call.shapes)).inputs

    @property
    def examples(self) -> list[Inputs]:
        """All kept calls but the sample."""
        sample = self.sample_input
        return [call.inputs for call in self.calls if call.inputs is not sample]

    @property
    def dynamic_axes(self) -> dict[str, dict[int, Axis]]:
        """The sizes that varied, from the least to the largest. Those that were always equal are one axis."""
        self._check()
        opt = next(call for call in self.calls if call.inputs is self.sample_input).shapes
        axes: dict[tuple[int, ...], Axis] = {}
        found: dict[str, dict[int, Axis]] = {}
        for name, shape in opt.items():
            for index in range(len(shape)):
                sizes = tuple(shapes[name][index] for shapes in self.shapes)
                if len(set(sizes)) > 1:
                    axis = Axis(_axis_name(name, index), min(sizes), shape[index], max(sizes))
                    found.setdefault(name, {})[index] = axes.setdefault(sizes, axis)
        return found

    def axes_with(self, declared: Mapping[str, Any] | None) -> dict[str, Any]:
        """The axes for deploy(): those that were recorded, or for an input that is declared, the user's own."""
        return {**self.dynamic_axes, **(declared or {})}

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault
        if not self.calls:
            raise InputError(
                "recorded calls",
                got="none",
                allowed="at least one call of the module itself",
                fix="call it inside `with record(module)`, by module(...) and not by module.forward(...)",
            )
        ranks = {tuple((name, len(shape)) for name, shape in shapes.items()) for shapes in self.shapes}
        if len(ranks) > 1:
            raise InputError(
                "recorded calls",
                got="tensors of different ranks",
                allowed="one rank for each input",
                fix="record calls of one rank",
            )


def _axis_name(name: str, index: int) -> str:
    return re.sub(r"\W", "_", f"{name}_{index}")


def _copied(inputs: Inputs) -> Inputs:
    """The same call with copies of its tensors, which no later write changes."""
    return Inputs(*map(_copy, inputs.args), **{name: _copy(value) for name, value in inputs.kwargs.items()})


def _copy(value: Any) -> Any:
    flat = flatten(value, "value")
    leaves: Sequence[torch.Tensor] = flat.leaves
    return unflatten(flat.tree, [leaf.detach().clone() for leaf in leaves])


@contextmanager
def record(model: nn.Module) -> Generator[Recording]:
    """Record the calls of a module while your own code runs, and deploy it without writing axes down.

    Args:
        model: any nn.Module. It answers as ever, and is left as it was.

    Yields:
        the recording; `deploy` takes it in the place of the model.

    Raises:
        InputError: no nn.Module.

    >>> with t2e.record(model) as recorded:
    ...     for batch in (3, 1, 8):
    ...         _ = model(torch.rand(batch, 3, 64, 64))
    >>> module = t2e.deploy(recorded, runtime="onnxruntime")
    >>> module(torch.rand(5, 3, 64, 64)).shape
    torch.Size([5, 10])
    """
    recording = Recording(unwrap(model))

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording.add(Inputs(*args, **kwargs))

    hook = recording.model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield recording
    finally:
        hook.remove()
