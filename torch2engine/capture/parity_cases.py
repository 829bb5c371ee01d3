"""A captured call → the cases that a candidate is compared on: inputs with the reference's answers.

Enters: the sample and the profiles. Leaves: for every profile the sample resized to min, opt and max, and a second,
random input at a size between. Separate because ONNX Runtime and the engine are compared on the same cases.
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
from torch2engine.core.profile_sizes import exclusive_sizes, profile_sizes
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

    Invented inputs that may end the process's CUDA context run on the CPU first.

    Returns:
        the cases, and notes on cases that are missing.

    Raises:
        DynamicAxisError: the model itself fails at a size that a profile promises.
        ExportError: the model can't be tried on the CPU first, and no profile holds the sample.
    """
    obstacle = "" if captured.trial is None else captured.trial.obstacle()
    notes = _notes_on_unreachable_profiles(captured)
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    plans = list(_planned_cases(captured.signature, captured.profiles))
    if obstacle:
        plans, note = _without_invented(captured, plans, obstacle)
        notes.append(note)
    parity_cases: list[ParityCase] = []
    for plan in plans:
        inputs = _make_inputs(captured, plan, generator)
        try:
            outputs = _answer(captured, plan, inputs)
        except ExportError as error:
            if not plan.is_random:
                raise _size_is_not_held(plan, error) from error
            notes.append(
                f"no case '{plan.name}': the model refuses random values drawn from the sample's range ({error.got})"
            )
            continue
        parity_cases.append(ParityCase(plan.name, inputs, outputs))
    if captured.trial is not None:
        captured.trial.refresh()  # frees its copy of the model
    return parity_cases, tuple(notes)


def _answer(captured: CapturedCall, plan: _PlannedCase, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """The reference's answer by output name.

    Raises:
        ExportError: the reference fails, here or in its trial on the CPU.
    """
    if captured.trial is not None and not _is_sample(captured, plan):
        captured.trial.run(inputs)
    output_names = [spec.name for spec in captured.signature.outputs]
    return outputs_by_name(captured.reference(inputs), captured.signature.output, output_names)


def _is_sample(captured: CapturedCall, plan: _PlannedCase) -> bool:
    """Whether a case is the sample itself, which the user gave and the model has answered."""
    return not plan.is_random and dict(plan.sizes) == captured.sample_sizes()


def _without_invented(
    captured: CapturedCall, plans: Sequence[_PlannedCase], obstacle: str
) -> tuple[list[_PlannedCase], str]:
    """Leave out all cases but the sample, with a note that says why.

    Raises:
        ExportError: no profile holds the sample.
    """
    kept = [plan for plan in plans if _is_sample(captured, plan)]
    sizes = captured.sample_sizes()
    if not kept and any(profile.contains(sizes) for profile in captured.profiles):
        kept = [_PlannedCase("sample", sizes, is_random=False)]
    reason = f"other inputs may end the process's CUDA context, and can't be tried on the CPU first ({obstacle})"
    if not kept:
        raise ExportError(
            "model",
            got=reason,
            allowed="a sample that a profile holds, since it alone may be compared",
            fix="deploy the model from the CPU, or give a sample inside a profile",
        )
    missing = ", ".join(f"'{plan.name}'" for plan in plans if plan not in kept)
    return kept, f"no cases {missing}: {reason}"


def _notes_on_unreachable_profiles(captured: CapturedCall) -> list[str]:
    signature = captured.signature
    profiles = captured.profiles
    return [
        f"profile {index} ({profile}) answers nothing: others that are as narrow hold all of its sizes"
        for index, profile in enumerate(profiles)
        if exclusive_sizes(signature, profiles, index, profile.sizes(1)) is None
    ]


def _size_is_not_held(plan: _PlannedCase, error: ExportError) -> DynamicAxisError:
    """The error for a model that fails at a size inside its profile."""
    sizes = ", ".join(f"{axis} = {size}" for axis, size in plan.sizes.items())
    return DynamicAxisError(
        f"axes {sizes}" if sizes else "model",
        axis=next(iter(plan.sizes), ""),
        got=error.got,
        allowed="a model that holds over the whole of every axis",
        fix="narrow the Axis, or mend the line",
        source=error.source,
    )


@dataclass(frozen=True)
class _PlannedCase:
    """A case whose inputs are not made yet.

    Args:
        name: as in `ParityCase`.
        sizes: of every dynamic axis.
        is_random: True for random values, False for the sample's.
    """

    name: str
    sizes: Mapping[str, int]
    is_random: bool


def _planned_cases(signature: Signature, profiles: Sequence[Profile]) -> Iterator[_PlannedCase]:
    """Every profile's cases: the sample's values at its corners, equal sizes once, and random ones at a size between.

    A profile answers at least one case with the sample's values and the random one, if it answers any sizes.
    """
    for index, profile in enumerate(profiles):
        prefix = f"profile {index} " if len(profiles) > 1 else ""
        seen: list[Mapping[str, int]] = []
        for corner, sizes in zip(("min", "opt", "max", "own"), profile_sizes(signature, profiles, index), strict=False):
            if sizes not in seen:
                seen.append(sizes)
                yield _PlannedCase(prefix + (corner if profile.ranges else "sample"), sizes, is_random=False)
        between = _sizes_between(signature, profile)
        sizes = exclusive_sizes(signature, profiles, index, between) or between
        yield _PlannedCase(prefix + "random", sizes, is_random=True)


def _sizes_between(signature: Signature, profile: Profile) -> dict[str, int]:
    """Sizes strictly inside the profile where there are any, other than opt, in multiples of the axis's step."""
    sizes: dict[str, int] = {}
    for name, (low, opt, high) in profile.ranges.items():
        step = signature.axis(name).multiple_of
        middle = low + (high - low) // (2 * step) * step
        sizes[name] = middle if middle != opt else min(high, middle + step)
    return sizes


def _make_inputs(captured: CapturedCall, plan: _PlannedCase, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    inputs: list[torch.Tensor] = []
    for sample, spec in zip(captured.sample, captured.signature.inputs, strict=True):
        shape = spec.sized(plan.sizes)
        if spec.preprocess is None:
            make = _random_values if plan.is_random else _resized_with_noise
        else:
            make = _random_image if plan.is_random else _resized_image
        inputs.append(make(sample, shape, generator))
    return tuple(inputs)


def _random_image(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random bytes; any byte may come, whatever the sample shows."""
    return torch.randint(256, tuple(shape), generator=generator, device="cpu").to(sample.device, sample.dtype)


def _resized_image(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return _resized_with_noise(sample.float(), shape, generator).round().to(sample.dtype)


def _resized_with_noise(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """The sample at another size; repeated floats get noise, so that mixed-up rows show."""
    values = resized(sample, shape)
    if not (sample.is_floating_point() and values.numel() > sample.numel() > 1) or _is_mask(sample):
        return values
    noise = torch.randn(values.shape, generator=generator, device="cpu").to(values.device, values.dtype)
    least = float(sample.min())
    largest = float(sample.max())
    if math.isfinite(least) and math.isfinite(largest):
        return (values + 0.1 * (largest - least) * noise).clamp(least, largest)
    return values


def _is_mask(sample: torch.Tensor) -> bool:
    """Bools, integers of two values, and masks to be added to scores: zero, or so low that softmax forgets it."""
    if sample.dtype == torch.bool:
        return True
    if sample.is_floating_point() and float(sample.min()) >= -1e3:
        return False
    distinct = len(cast("torch.Tensor", sample.unique()))
    return distinct == 2 or (distinct == 1 and not sample.is_floating_point())


def _random_values(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Fresh values from the sample's own range: ids stay in the vocabulary, positive stays positive."""
    if sample.numel() == 0:
        return resized(sample, shape)
    if _is_mask(sample):
        return _shuffled_rows(resized(sample, shape), generator)
    if sample.is_floating_point():
        return _random_floats(sample, shape, generator)
    least = int(sample.min())
    largest = min(int(sample.max()), torch.iinfo(torch.int64).max - 1)
    values = torch.randint(least, largest + 1, tuple(shape), generator=generator, device="cpu")
    return values.to(sample.device, sample.dtype)


def _shuffled_rows(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Whole rows of a mask in another order, because a mask of random bits may mask everything."""
    order = torch.randperm(values.shape[0] if values.ndim else 0, generator=generator, device="cpu")
    return values[order.to(values.device)] if values.ndim else values


def _random_floats(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    least = float(sample.min())
    largest = float(sample.max())
    if not (math.isfinite(least) and math.isfinite(largest)):
        return resized(sample, shape)
    if least == largest:  # a sample of constants says nothing about the range
        if sample.numel() > 1 or not least:
            least, largest = least - 1, least + 1
        else:
            least, largest = 0.9 * least, 1.1 * least
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")
    return (uniform * (largest - least) + least).to(sample.device, sample.dtype)
