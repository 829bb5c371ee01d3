"""The changes that a call makes in its arguments: tensors that it writes into, containers that it fills anew.

Enters: the reference and the sample. Leaves: its first answer, and the changes; or an error at the user's line.
Separate because an engine only reads its inputs: what PyTorch leaves in the arguments must become an output.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torch2engine.capture.reference import Reference, copied
from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.errors import ExportError
from torch2engine.core.pytree import Flat, assign, flatten, unique_names
from torch2engine.core.spec import ContainerRefill, Effect, InputWrite, Parameter, Tree

__all__ = ["CallEffects", "FirstAnswer", "answer_with_effects"]


@dataclass(frozen=True)
class CallEffects:
    """The changes that a call makes in its arguments, with outputs by their place among those of the answer.

    Args:
        written: {index of a written input: place of the output with its new value}.
        refilled: the containers that are filled anew.
        sources: where the outputs after those of the result are found after the call.
        hints: names for these outputs.
    """

    written: Mapping[int, int]
    refilled: Sequence[_Refilled]
    sources: Sequence[Effect]
    hints: Sequence[str]

    def output_names(self, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
        """Name the outputs after those of the result."""
        return unique_names(self.hints, taken=[*inputs, *outputs])

    def writes(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[InputWrite, ...]:
        """The written inputs, by the names of all inputs and outputs."""
        return tuple(InputWrite(inputs[index], outputs[place]) for index, place in self.written.items())

    def refills(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[ContainerRefill, ...]:
        """The containers that are filled anew, by the names of all inputs and outputs."""
        return tuple(
            ContainerRefill(
                one.path, one.tree, tuple((inputs if is_input else outputs)[place] for is_input, place in one.places)
            )
            for one in self.refilled
        )


@dataclass(frozen=True)
class _Refilled:
    """A container after a call; a place is that of an input or of an output."""

    path: tuple[str | int, ...]
    tree: Tree
    places: Sequence[tuple[bool, int]]


@dataclass(frozen=True)
class FirstAnswer:
    """The model's answer to the sample, and what the call changed.

    Args:
        reference: the model. Its answers end with the tensors that the call leaves in the arguments alone.
        result: such an answer.
        effects: the changes.
    """

    reference: Reference
    result: Flat
    effects: CallEffects = CallEffects({}, (), (), ())


def answer_with_effects(
    reference: Reference, names: Sequence[str], sample: Sequence[torch.Tensor], mutations: str
) -> FirstAnswer:
    """Run the reference on clones of the sample, and find what it changes in its arguments.

    Args:
        reference: the model.
        names, sample: its inputs.
        mutations: "refuse" or "write_back", as `BuildConfig.mutations`.

    Raises:
        ExportError: it writes into an input, and that is to be refused or can't be written back; names the line.
    """
    clones = [tensor.detach().clone() for tensor in sample]
    versions = [clone._version for clone in clones]
    contents = _ArgumentContents(reference.parameters)
    result = reference.run_uncopied(clones, contents.remember)
    outputs = _Outputs(list(result.leaves))
    written: dict[int, int] = {}
    for index, (tensor, clone, version) in enumerate(zip(sample, clones, versions, strict=True)):
        if clone._version == version and _is_same(tensor, clone):
            continue
        if mutations == "refuse" or clone.shape != tensor.shape:
            source = _find_first_write(reference, [tensor.detach().clone() for tensor in sample])
            raise _refusal(names[index], tensor, clone, source)
        written[index] = outputs.place_of(clone, Effect((), index), names[index])
    refilled = [contents.located(change, outputs) for change in contents.changes()]
    effects = CallEffects(written, refilled, outputs.sources, outputs.hints)
    answer = Flat(result.tree, outputs.leaves, result.names)
    return FirstAnswer(
        reference.with_effects(outputs.sources, {one.path: one.tree for one in refilled}), copied(answer), effects
    )


@dataclass
class _Outputs:
    """The tensors of an answer: those of the result, then those that the call leaves in its arguments alone."""

    leaves: list[torch.Tensor]
    sources: list[Effect] = field(default_factory=list[Effect])
    hints: list[str] = field(default_factory=list[str])

    def place_of(self, tensor: torch.Tensor, source: Effect, name: str) -> int:
        """The place of this very tensor; it is added if it has none."""
        for place, leaf in enumerate(self.leaves):
            if leaf is tensor:
                return place
        self.leaves.append(tensor)
        self.sources.append(source)
        self.hints.append(f"{name}.written")
        return len(self.leaves) - 1


@dataclass(frozen=True)
class _Change:
    """A container whose contents have changed."""

    path: tuple[str | int, ...]
    after: Flat


class _ArgumentContents:
    """The containers among a call's arguments, with their contents before the call.

    Args:
        parameters: forward's.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        self._values: dict[str, Any] = {}
        self._before: dict[str, Flat] = {}

    def remember(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at the arguments before the call."""
        given = assign(self._parameters, args, kwargs)
        self._values = {one.name: given[one.name] for one in self._parameters if one.tree is not None}
        self._before = {name: flatten(value, name) for name, value in self._values.items()}

    def changes(self) -> Iterator[_Change]:
        """Find the outermost containers that the call has changed."""
        for name, value in self._values.items():
            before = self._before[name]
            after = flatten(value, name)
            yield from _changes((name,), before, after)

    def located(self, change: _Change, outputs: _Outputs) -> _Refilled:
        """Say of each tensor in a changed container which input or output it is."""
        inputs = [leaf for flat in self._before.values() for leaf in flat.leaves]
        places: list[tuple[bool, int]] = []
        for position, (leaf, name) in enumerate(zip(change.after.leaves, change.after.names, strict=True)):
            index = next((index for index, tensor in enumerate(inputs) if tensor is leaf), None)
            if index is not None:
                places.append((True, index))
            else:
                places.append((False, outputs.place_of(leaf, Effect(change.path, position), name)))
        return _Refilled(change.path, change.after.tree, places)


def _changes(path: tuple[str | int, ...], before: Flat, after: Flat) -> Iterator[_Change]:
    """The outermost changed containers at and below a path."""
    if before.tree == after.tree and all(map(_is_identical, before.leaves, after.leaves)):
        return
    old = before.tree
    new = after.tree
    if old.kind in ("tensor", "constant"):
        return  # forward's own variable: no caller sees it
    pairs = list(zip(_parts(before), _parts(after), strict=False))
    if old.kind == "registered" or old.keys != new.keys or any(_is_replaced(one, other) for one, other in pairs):
        yield _Change(path, after)
        return
    for key, (one, other) in zip(old.keys, pairs, strict=True):
        yield from _changes((*path, key), one, other)


def _is_replaced(before: Flat, after: Flat) -> bool:
    """Whether something else stands in a container's place: a tensor, a constant, or a container of another kind."""
    if before.tree.kind != after.tree.kind or before.tree.kind == "constant":
        return before.tree != after.tree
    return before.tree.kind == "tensor" and before.leaves[0] is not after.leaves[0]


def _is_identical(before: Any, after: Any) -> bool:
    return before is after


def _parts(flat: Flat) -> list[Flat]:
    """The children of a flattened container."""
    parts: list[Flat] = []
    start = 0
    for child in flat.tree.children:
        end = start + child.leaves()
        parts.append(Flat(child, flat.leaves[start:end], flat.names[start:end]))
        start = end
    return parts


def _refusal(name: str, before: torch.Tensor, after: torch.Tensor, source: str) -> ExportError:
    """The error for a model that writes into an input."""
    if before.shape != after.shape:
        return ExportError(
            "model",
            got=f"a change of its input '{name}' from shape {list(before.shape)} to {list(after.shape)}",
            allowed="a forward that leaves the shapes of its inputs as they are",
            fix="use the operator without the underscore, and return what the caller needs",
            source=source,
        )
    return ExportError(
        "model",
        got=f"a write into its input '{name}'",
        allowed="a forward that only reads its inputs, since an engine leaves them as they are",
        fix="pass config=BuildConfig(mutations='write_back') to deploy (to export: mutations='write_back'), and calls "
        "copy the new values into the caller's tensors; or write into a clone in forward, and return what is needed",
        source=source,
    )


def _is_same(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape:
        return False
    before = before.detach()
    return bool(((before == after) | ((before != before) & (after != after))).all())


def _find_first_write(reference: Reference, leaves: Sequence[torch.Tensor]) -> str:
    """The user's line that first writes into one of `leaves`, or ""."""
    with _FirstWrite(leaves) as first_write, suppress(ExportError):
        reference.run(leaves)
    return first_write.source


class _FirstWrite(TorchFunctionMode):
    """Watches tensors, and remembers the user's line that first writes into one of them."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._versions = [tensor._version for tensor in tensors]
        self.source = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and look at the versions afterwards."""
        result = func(*args, **(kwargs or {}))
        if not self.source and [tensor._version for tensor in self._tensors] != self._versions:
            self.source = innermost_user_frame([(frame.filename, frame.lineno) for frame in traceback.extract_stack()])
        return result
