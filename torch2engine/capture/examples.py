"""Real inputs at other sizes, which the caller gives for comparisons instead of invented ones.

Enters: the `examples` of deploy(), check(), benchmark() or refit(). Leaves: their tensors, or a typed error that names
the example. Separate because they are read before any work is done, and checked when the call's signature is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.torch_types import check_tensor, dtype_name, torch_dtype
from torch2engine.core.errors import InputError, ShapeError
from torch2engine.core.pytree import Inputs, as_inputs, bind
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Profile, Signature
from torch2engine.core.wording import kind_of

__all__ = ["bind_examples", "notes_on_coverage", "read_examples", "with_examples"]

_SINGLE_INPUTS: tuple[type, ...] = (torch.Tensor, Mapping, str, Inputs)


def read_examples(examples: object) -> tuple[Any, ...] | None:
    """Read the examples once, as an iterator allows.

    Args:
        examples: an iterable of inputs, each in the form of sample_input; None for none.

    Raises:
        InputError: no iterable, a single input, or no example in it.
    """
    if examples is None:
        return None
    if isinstance(examples, _SINGLE_INPUTS) or not isinstance(examples, Iterable):
        raise InputError(
            "examples",
            got=kind_of(examples),
            allowed="an iterable of inputs, each in the form of sample_input",
            fix="write examples=[x] for a single input x",
        )
    read = tuple(cast("Iterable[Any]", examples))
    if not read:
        raise InputError(
            "examples",
            got="no input",
            allowed="at least one, though an iterator that was read before has none left",
            fix="pass a list, or leave examples out",
        )
    return read


def with_examples(captured: CapturedCall, examples: Sequence[Any] | None) -> CapturedCall:
    """Give the captured call its examples.

    Args:
        captured: with its final signature and profiles.
        examples: from `read_examples`.

    Raises:
        InputError, DtypeError, ShapeError: as `bind_examples`.
    """
    if examples is None:
        return captured
    live = captured.sample[len(captured.signature.call_inputs) :]
    return replace(captured, examples=bind_examples(captured.signature, captured.profiles, examples, live))


def bind_examples(
    signature: Signature, profiles: Sequence[Profile], examples: Iterable[Any], live: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Give the tensors of each example in the signature's order and dtypes, each on its own device.

    Args:
        signature, profiles: of the call.
        examples: from `read_examples`.
        live: values of the live parameters, which no example holds.

    Raises:
        InputError, DtypeError, ShapeError: an example that is not in the form of sample_input, or outside every
            profile; names its index.
    """
    bound: list[tuple[torch.Tensor, ...]] = []
    for index, example in enumerate(examples):
        try:
            bound.append(_bind_example(signature, profiles, example, live))
        except InputError as error:
            raise _naming_example(index, error) from error
    return tuple(bound)


def _bind_example(
    signature: Signature, profiles: Sequence[Profile], example: Any, live: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    inputs = as_inputs(example)
    leaves = [*cast("list[torch.Tensor]", bind(signature.parameters, inputs.args, inputs.kwargs)), *live]
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        check_tensor(spec.name, leaf)
        signature.check_dtype(spec, dtype_name(leaf.dtype))
    sizes = signature.resolve([leaf.shape for leaf in leaves])
    try:
        select_profile(signature, profiles, sizes)
    except ShapeError as error:
        error.fix = _fix_of_size(signature, profiles, error)
        raise
    pairs = zip(signature.inputs, leaves, strict=True)
    return tuple(leaf.detach().to(torch_dtype(spec.dtype)) for spec, leaf in pairs)


def _fix_of_size(signature: Signature, profiles: Sequence[Profile], error: ShapeError) -> str:
    """The fix for an example outside every profile."""
    ranges = {axis.name: axis.range for axis in signature.axes}
    if [dict(profile.ranges) for profile in profiles] == [ranges] and "Axis(" in error.fix:
        return error.fix.replace("redeploy with", "give", 1) + ", or leave the example out"
    return "add a profile that holds it to profiles=, or leave the example out"


def _naming_example(index: int, error: InputError) -> InputError:
    """The same error about an example."""
    is_whole = error.subject in ("sample_input", "call", "inputs")
    subject = f"examples[{index}]" + ("" if is_whole else f", {error.subject}")
    return type(error)(subject, got=error.got, allowed=error.allowed, fix=error.fix, name=error.name)


def notes_on_coverage(captured: CapturedCall, all_sizes: Sequence[Mapping[str, int]]) -> list[str]:
    """Say which ends of the profiles no example reaches.

    Args:
        captured: with its signature and profiles.
        all_sizes: the size of every axis, of each example.
    """
    notes: list[str] = []
    profiles = captured.profiles
    for index, profile in enumerate(profiles):
        inside = [sizes for sizes in all_sizes if select_profile(captured.signature, profiles, sizes) == index]
        name = f"profile {index}" if len(profiles) > 1 else "the profile"
        if not inside:
            notes.append(f"no example lies in {name} ({profile}), so nothing was compared there")
            continue
        missing = [
            f"{axis} = {end}"
            for axis, (low, _, high) in profile.ranges.items()
            for end in dict.fromkeys((low, high))
            if all(sizes[axis] != end for sizes in inside)
        ]
        if missing:
            notes.append(f"no example in {name} has {' or '.join(missing)}, so nothing was compared there")
    return notes
