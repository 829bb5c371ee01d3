"""What a model writes into its inputs: found at its first call, and refused or recorded.

Enters: the reference and the sample. Leaves: its first answer, with the inputs that it writes into; or an error at the
user's line. Separate because an engine only reads its inputs: what PyTorch writes must become an output.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torch2engine.capture.reference import Reference, copied
from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.errors import ExportError
from torch2engine.core.pytree import Flat

__all__ = ["FirstAnswer", "answer_with_writes"]


@dataclass(frozen=True)
class FirstAnswer:
    """The model's answer to the sample, and the inputs that it writes into.

    Args:
        reference: the model; its answers end with the new values of the written inputs that it does not return.
        result: such an answer.
        written: {index of a written input: index of the result's tensor that is this input, or None}.
    """

    reference: Reference
    result: Flat
    written: Mapping[int, int | None]


def answer_with_writes(
    reference: Reference, names: Sequence[str], sample: Sequence[torch.Tensor], mutations: str
) -> FirstAnswer:
    """Run the reference on clones of the sample, and find what it writes into them.

    Args:
        reference: the model.
        names, sample: its inputs.
        mutations: "refuse" or "write_back", as `BuildConfig.mutations`.

    Raises:
        ExportError: it writes into an input, and that is to be refused or can't be written back; names the line.
    """
    clones = [tensor.detach().clone() for tensor in sample]
    versions = [clone._version for clone in clones]
    result = reference.run_uncopied(clones)
    written: dict[int, int | None] = {}
    for index, (tensor, clone, version) in enumerate(zip(sample, clones, versions, strict=True)):
        if clone._version == version and _is_same(tensor, clone):
            continue
        if mutations == "refuse" or clone.shape != tensor.shape:
            source = _find_first_write(reference, [tensor.detach().clone() for tensor in sample])
            raise _refusal(names[index], tensor, clone, source)
        places = [place for place, leaf in enumerate(result.leaves) if leaf is clone]
        written[index] = places[0] if places else None
    unreturned = [index for index, place in written.items() if place is None]
    answer = Flat(result.tree, [*result.leaves, *[clones[index] for index in unreturned]], result.names)
    return FirstAnswer(reference.returning(unreturned), copied(answer), written)


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
