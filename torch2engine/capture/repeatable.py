"""Whether a model is a function of its inputs alone.

Enters: the reference and the sample. Leaves: its answer, and a note on state that no answer depends on. Separate
because an engine keeps no state. For a model that does, it would be wrong from the second call on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torch2engine.capture.call_effects import FirstAnswer
from torch2engine.capture.device_asserts import is_on_gpu
from torch2engine.capture.host_trial import HostTrial, trial_if_needed
from torch2engine.capture.model_state import ModelSnapshot, StateEntry, state_entries, state_values
from torch2engine.capture.reference import Reference
from torch2engine.core.errors import ExportError
from torch2engine.core.pytree import Flat

__all__ = ["RepeatableAnswer", "answer_repeatably"]

# The values that counters are set to: round numbers, just below these, small numbers, and far larger ones.
_COUNTS = (10**6, 0, 1, 2, 3, 4, 5, 6, 7, 9, 49, 50, 99, 127, 999)
_LISTED = 4  # attributes that a message names
_MANY = 64  # times that a list which grows is repeated


@dataclass(frozen=True)
class RepeatableAnswer:
    """The model's answer to the sample, and what was found on the way.

    Args:
        first: the answer, and the reference that gives it.
        notes: what a user should know of the model's state.
        trial: where invented inputs must run before they may reach the model; None if no trial is needed.
    """

    first: FirstAnswer
    notes: tuple[str, ...]
    trial: HostTrial | None


def answer_repeatably(
    model: nn.Module,
    sample: Sequence[torch.Tensor],
    call_first: Callable[[], FirstAnswer],
    on_gpu: Callable[[torch.Tensor], bool] = is_on_gpu,
) -> RepeatableAnswer:
    """Call the model on the sample, on another input and on the sample again; run inside `undisturbed`.

    The values that these calls change in the model are found by comparison. No answer may depend on a value that calls
    change: neither on the value that an earlier call left, nor on any other value in its place. Afterwards the model is
    as it was before.

    Args:
        model: the module.
        sample: its inputs; the model gets clones of them.
        call_first: the model's first call on the sample.
        on_gpu: whether a tensor is on a GPU, where other inputs and other state may end the process's CUDA context.

    Raises:
        ExportError: the model fails, or its answer depends on what earlier calls left in it; names the attributes.
    """
    fresh = ModelSnapshot(model)
    values_when_fresh = state_values(model)
    first = call_first()
    reference = first.reference
    answer = first.result
    values_after_first = state_values(model)
    trial = trial_if_needed(reference, sample, answer.leaves, on_gpu)
    other = _other_input(sample)
    answer_to_other = _try_answer(reference, other, trial)
    if answer_to_other is None:  # the failed call may have left anything behind
        fresh.restore()
        reference(sample)
    values_after_other = state_values(model)
    again = reference(sample)
    values_after_again = state_values(model)
    volatile = _changed(values_after_first, values_after_other) | _changed(values_after_other, values_after_again)
    changed = _changed(values_when_fresh, values_after_first) | volatile
    if not _same_answer(answer, again):
        raise _refusal("different results of two calls on the same input", changed)
    if changed and answer_to_other is not None:
        fresh.restore()
        answer_when_fresh = _try_answer(reference, other, trial, has_other_state=True)
        if answer_when_fresh is None or not _same_answer(answer_when_fresh, answer_to_other):
            raise _refusal("an answer that depends on the call before it", changed)
        reference(sample)
    if volatile:
        _check_unread(reference, sample, answer, volatile, trial)
    fresh.restore()
    if trial is not None:
        trial.refresh()
    return RepeatableAnswer(first, _note(changed), trial)


def _check_unread(
    reference: Reference, sample: Sequence[torch.Tensor], answer: Flat, volatile: set[str], trial: HostTrial | None
) -> None:
    """Give other values to the state that every call changes, and refuse a model that then answers differently."""
    if trial is not None and (obstacle := trial.obstacle()):
        raise ExportError(
            "model",
            got=f"a call that changes {_named(volatile)}, on which no answer can be tried: {obstacle}",
            allowed="a model that can be tried on the CPU, where an index out of range is an exception",
            fix=f"deploy it from the CPU, or don't change {_named(volatile)} in inference",
        )
    current = ModelSnapshot(reference.model)
    entries = [entry for entry in state_entries(reference.model) if entry.path in volatile]
    has_counts = any(_is_count(entry.value) for entry in entries)
    for count in _COUNTS if has_counts else _COUNTS[:1]:
        for entry in entries:
            _replace(entry, count)
        found = _try_answer(reference, sample, trial, has_other_state=True)
        current.restore()
        if found is None or not _same_answer(found, answer):
            raise _refusal("answers that depend on values that every call changes", volatile)


def _is_count(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return isinstance(value, int) and not isinstance(value, bool)


def _replace(entry: StateEntry, count: int) -> None:
    value = entry.value
    if isinstance(value, (list, deque)) and value:
        container = cast("list[Any]", value)
        container.extend(list(container) * _MANY)
    elif entry.container is not None and (other := _other_value(value, count)) is not None:
        entry.container[entry.key] = other


def _other_value(value: Any, count: int) -> Any:
    """A value of the same type and shape, or None where there is none."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            return ~value
        is_number = value.is_floating_point() or value.is_complex()
        return value * 1.5 + 1 if is_number else torch.full_like(value, min(count, torch.iinfo(value.dtype).max))
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        if array.dtype.kind in "iu":
            return np.full_like(array, min(count, np.iinfo(array.dtype).max))
        return (array * 1.5 + 1).astype(array.dtype) if array.dtype.kind in "fc" else None
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return count
    return value * 1.5 + 1 if isinstance(value, float) else None


def _other_input(sample: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Other values that are no larger than the sample's."""
    others: list[torch.Tensor] = []
    for leaf in sample:
        values = leaf.detach().flatten().flip(0).reshape(leaf.shape)
        is_finite = leaf.is_floating_point() and bool(leaf.isfinite().all())
        others.append(values * 0.5 + 0.125 if is_finite else values)
    return others


def _try_answer(
    reference: Reference, inputs: Sequence[torch.Tensor], trial: HostTrial | None, has_other_state: bool = False
) -> Flat | None:
    """Answer invented inputs, or by invented state; None if the model fails, or may end the CUDA context.

    Args:
        reference: the model.
        inputs: its inputs.
        trial: where they run first; None if that is not needed.
        has_other_state: whether the model's state has changed since the trial's last run.
    """
    try:
        if trial is not None:
            if trial.obstacle():
                return None
            if has_other_state:
                trial.refresh()
            trial.run(inputs)
        return reference(inputs)
    except ExportError:
        return None


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    paths = {*before, *after}
    return {path for path in paths if path not in before or path not in after or before[path] != after[path]}


def _same_answer(left: Flat, right: Flat) -> bool:
    return left.tree == right.tree and all(map(_nearly_equal, left.leaves, right.leaves))


def _nearly_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal, except for what other addresses on a CPU, or atomic additions on a GPU, may change."""
    if left.shape != right.shape or left.dtype != right.dtype or left.layout != right.layout:
        return False
    if left.layout is not torch.strided:
        return _nearly_equal(left.to_dense(), right.to_dense())
    if not left.dtype.is_floating_point or torch.equal(left, right):
        return torch.equal(left, right)
    rounding = max(torch.finfo(left.dtype).eps, torch.finfo(torch.float32).eps)
    share = 64 * rounding if left.device.type == "cpu" else 1e-2
    scale = float(left.double().abs().nan_to_num(0, 0, 0).max()) if left.numel() else 0.0
    return torch.allclose(left.double(), right.double(), rtol=share, atol=share * scale, equal_nan=True)


def _named(paths: set[str]) -> str:
    """The attributes, without those below another one that is named."""
    names = [repr(path) for path in sorted(paths) if not any(path.startswith((f"{o}.", f"{o}[")) for o in paths)]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _refusal(got: str, changed: set[str]) -> ExportError:
    return ExportError(
        "model",
        got=got + (f" (a call changes {_named(changed)})" if changed else ""),
        allowed="a function of its inputs alone, since an engine keeps no state and draws no random numbers",
        fix="pass the state as an input and return it, or take randomness out of inference",
    )


def _note(changed: set[str]) -> tuple[str, ...]:
    if not changed:
        return ()
    return (f"a call changes {_named(changed)}, on which no answer was seen to depend; the engine leaves it alone",)
