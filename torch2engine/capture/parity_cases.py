"""`CapturedCall` → the cases that a candidate is judged on: inputs with the reference's answers.

Enters: the sample and the profiles. Leaves: for every profile the sample resized to min, opt and max, and a second,
random input at a size between. A room of its own because ONNX Runtime and the engine are judged on the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from torch2engine.capture.captured_call import CapturedCall, resized
from torch2engine.capture.reference import outputs_by_name
from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.profiles import exclusive_sizes, profile_sizes
from torch2engine.core.spec import Profile, Signature

__all__ = ["ParityCase", "make_parity_cases"]


@dataclass(frozen=True)
class ParityCase:
    """One input with its right answer.

    Args:
        name: e.g. "min", "opt", "max", "random", or "own" for sizes that no narrower profile answers; with the
            profile's number in front where there are several.
        inputs: tensors in the signature's order, on the sample's device; never written to.
        outputs: the reference's answer by output name.
    """

    name: str
    inputs: tuple[torch.Tensor, ...]
    outputs: Mapping[str, torch.Tensor]


def make_parity_cases(captured: CapturedCall) -> tuple[list[ParityCase], tuple[str, ...]]:
    """Run the reference on every case; call it inside `undisturbed`.

    Returns:
        the cases, and notes on random inputs that the model itself refuses.

    Raises:
        DynamicAxisError: the model itself fails at a size that a profile promises.
    """
    found: list[ParityCase] = []
    notes: list[str] = []
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    for index, profile in enumerate(captured.profiles):
        if exclusive_sizes(captured.signature, captured.profiles, index, profile.sizes(1)) is None:
            notes.append(
                f"profile {index} ({profile}) answers nothing: others that are as narrow hold all of its sizes"
            )
    for name, sizes, is_random in _sizes(captured.signature, captured.profiles):
        inputs = tuple(
            _made(leaf, spec.sized(sizes), generator, is_random, spec.preprocess is not None)
            for leaf, spec in zip(captured.sample, captured.signature.inputs, strict=True)
        )
        try:
            flat = captured.reference(inputs)
        except ExportError as error:
            if not is_random:
                asked = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
                raise DynamicAxisError(
                    f"axes {asked}" if sizes else "model",
                    axis=next(iter(sizes), ""),
                    got=error.got,
                    allowed="a model that holds over the whole of every axis",
                    fix="narrow the Axis, or mend the line",
                    source=error.source,
                ) from error
            notes.append(
                f"no case '{name}': the model refuses random values drawn from the sample's range ({error.got})"
            )
            continue
        names = [spec.name for spec in captured.signature.outputs]
        found.append(ParityCase(name, inputs, outputs_by_name(flat, captured.signature.output, names)))
    return found, tuple(notes)


def _sizes(signature: Signature, profiles: Sequence[Profile]) -> Iterator[tuple[str, dict[str, int], bool]]:
    """(name, axis sizes, random values?) of every case, equal sizes once; every profile answers one with the sample's
    values and the random one, if it answers any."""
    for index, profile in enumerate(profiles):
        prefix = f"profile {index} " if len(profiles) > 1 else ""
        seen: list[dict[str, int]] = []
        for word, sizes in zip(("min", "opt", "max", "own"), profile_sizes(signature, profiles, index), strict=False):
            if sizes not in seen:
                seen.append(sizes)
                yield prefix + (word if profile.ranges else "sample"), sizes, False
        between = _between(signature, profile)
        yield prefix + "random", exclusive_sizes(signature, profiles, index, between) or between, True


def _between(signature: Signature, profile: Profile) -> dict[str, int]:
    """Sizes strictly inside the profile where there are any, other than opt, in multiples of the axis's step."""
    sizes: dict[str, int] = {}
    for name, (low, opt, high) in profile.ranges.items():
        step = signature.axis(name).multiple_of
        middle = low + (high - low) // (2 * step) * step
        sizes[name] = middle if middle != opt else min(high, middle + step)
    return sizes


def _made(
    leaf: torch.Tensor, shape: Sequence[int], generator: torch.Generator, is_random: bool, is_image: bool
) -> torch.Tensor:
    if not is_image:
        return (_random if is_random else _perturbed)(leaf, shape, generator)
    if is_random:  # any byte may come, whatever the sample shows
        return torch.randint(256, tuple(shape), generator=generator, device="cpu").to(leaf.device, leaf.dtype)
    return _perturbed(leaf.float(), shape, generator).round().to(leaf.dtype)


def _perturbed(leaf: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """The sample at another size; repeated floats get noise, so that mixed-up rows show."""
    grown = resized(leaf, shape)
    if leaf.is_floating_point() and grown.numel() > leaf.numel() > 1 and not _is_mask(leaf):
        noise = torch.randn(grown.shape, generator=generator, device="cpu").to(grown.device, grown.dtype)
        low, high = float(leaf.min()), float(leaf.max())
        if math.isfinite(low) and math.isfinite(high):
            grown = (grown + 0.1 * (high - low) * noise).clamp(low, high)
    return grown


def _is_mask(leaf: torch.Tensor) -> bool:
    """Bools, integers of two values, and masks to be added to scores: zero, or so low that softmax forgets it."""
    if leaf.dtype == torch.bool or (leaf.is_floating_point() and float(leaf.min()) >= -1e3):
        return leaf.dtype == torch.bool
    values = len(cast("torch.Tensor", leaf.unique()))
    return values == 2 or (values == 1 and not leaf.is_floating_point())


def _random(leaf: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Fresh values from the sample's own range: ids stay in the vocabulary, positive stays positive."""
    if leaf.numel() == 0:
        return resized(leaf, shape)
    if _is_mask(leaf):  # whole rows in another order, because a mask of random bits may mask everything
        values = resized(leaf, shape)
        order = torch.randperm(values.shape[0] if values.ndim else 0, generator=generator, device="cpu")
        return values[order.to(values.device)] if values.ndim else values
    if leaf.is_floating_point():
        low, high = float(leaf.min()), float(leaf.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return resized(leaf, shape)
        if low == high:  # a sample of constants says nothing about the range
            low, high = (low - 1, high + 1) if leaf.numel() > 1 or not low else (0.9 * low, 1.1 * high)
        values = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device="cpu") * (high - low) + low
        return values.to(leaf.device, leaf.dtype)
    low, high = int(leaf.min()), min(int(leaf.max()), torch.iinfo(torch.int64).max - 1)
    values = torch.randint(low, high + 1, tuple(shape), generator=generator, device="cpu")
    return values.to(leaf.device, leaf.dtype)
