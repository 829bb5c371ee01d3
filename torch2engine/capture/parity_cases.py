"""A captured call → the cases that a candidate is compared on: inputs with the reference's answers.

Enters: the sample, the profiles, and the user's examples if there are any. Leaves: the examples. Without them, every
profile has the sample resized to min, opt and max, and a random input at a size between. Separate because ONNX Runtime
and the engine are compared on the same cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.examples import notes_on_coverage
from torch2engine.capture.invented_inputs import Guess, inputs_with_guesses, invented_inputs
from torch2engine.capture.live_parameters import other_values
from torch2engine.capture.reference import outputs_by_name
from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.profile_sizes import exclusive_sizes, profile_sizes
from torch2engine.core.pytree import Flat
from torch2engine.core.spec import Profile, Signature

__all__ = ["ParityCase", "make_parity_cases"]


@dataclass(frozen=True)
class ParityCase:
    """One input with its right answer.

    Args:
        name: e.g. "min", "opt", "max", "random", or "own" for sizes that no narrower profile answers. With several
            profiles, the profile's number stands in front. With examples "sample", "example 0", and so on. "live" has
            other values of the live parameters.
        inputs: tensors in the signature's order, on the sample's device; never written to.
        outputs: the reference's answer by output name.
        guessed: names of inputs with invented integers or masks, which may not fit together.
        sensitivity: from `with_sensitivity`: precision -> output name -> how far each element moves by rounding, in
            the output's shape; floating outputs alone have it.
        kind: the last word of an invented case's name: "min", "opt", "max", "own" or "random"; "" for real inputs.
    """

    name: str
    inputs: tuple[torch.Tensor, ...]
    outputs: Mapping[str, torch.Tensor]
    guessed: tuple[str, ...] = ()
    sensitivity: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict[str, Mapping[str, torch.Tensor]])
    kind: str = ""


def make_parity_cases(captured: CapturedCall) -> tuple[list[ParityCase], tuple[str, ...]]:
    """Run the reference on every case; call it inside `undisturbed`.

    Invented inputs that may end the process's CUDA context run on the CPU first.

    Returns:
        the cases, and notes on cases that are missing or say little.

    Raises:
        DynamicAxisError: the model itself fails at a size that a profile promises.
        ExportError: it fails on an example; or it can't be tried on the CPU first, and no profile holds the sample.
    """
    notes = _notes_on_unreachable_profiles(captured)
    make = _cases_of_examples if captured.examples else _invented_cases
    parity_cases, more_notes = make(captured)
    if captured.signature.live_inputs:
        live_cases, notes_on_live = _cases_of_other_live_values(captured, parity_cases[0])
        parity_cases += live_cases
        more_notes += notes_on_live
    if captured.trial is not None:
        captured.trial.refresh()  # frees its copy of the model
    return parity_cases, (*notes, *more_notes)


def _cases_of_examples(captured: CapturedCall) -> tuple[list[ParityCase], list[str]]:
    """The sample and the examples, with notes on sizes that none of them has.

    Raises:
        ExportError: the reference fails on an example.
    """
    inputs = {f"example {index}": leaves for index, leaves in enumerate(captured.examples)}
    if any(profile.contains(captured.sample_sizes()) for profile in captured.profiles):
        inputs = {"sample": captured.sample, **inputs}
    parity_cases: list[ParityCase] = []
    for name, leaves in inputs.items():
        pairs = zip(leaves, captured.sample, strict=True)
        on_device = tuple(leaf.to(sample.device, copy=True) for leaf, sample in pairs)
        try:
            result = captured.reference(on_device)
        except ExportError as error:
            raise ExportError(
                f"examples[{name.removeprefix('example ')}]",
                got=error.got,
                allowed="inputs that the model answers",
                fix="leave this example out, or correct the line",
                source=error.source,
            ) from error
        parity_cases.append(_make_case(captured, name, _AnsweredInputs(on_device, result, None)))
    all_sizes = [captured.signature.resolve([leaf.shape for leaf in case.inputs]) for case in parity_cases]
    return parity_cases, notes_on_coverage(captured, all_sizes)


def _invented_cases(captured: CapturedCall) -> tuple[list[ParityCase], list[str]]:
    """The cases that follow from the sample and the profiles, with notes on those that are missing or prove little.

    Raises:
        DynamicAxisError, ExportError: as `make_parity_cases`.
    """
    obstacle = "" if captured.trial is None else captured.trial.obstacle()
    notes: list[str] = []
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    plans = list(_planned_cases(captured.signature, captured.profiles))
    if obstacle:
        plans, note = _without_invented(captured, plans, obstacle)
        notes.append(note)
    parity_cases: list[ParityCase] = []
    with_sample: dict[frozenset[tuple[str, int]], _AnsweredInputs] = {}  # profiles that share a size share its answer
    for plan in plans:
        sizes = frozenset(plan.sizes.items())
        try:
            answered = with_sample.get(sizes) if not plan.is_random else None
            answered = answered or _answer_plan(captured, plan, generator)
        except ExportError as error:
            if not plan.is_random:
                raise _size_is_not_held(captured, plan, error) from error
            notes.append(
                f"no case '{plan.name}': the model refuses random values drawn from the sample's range ({error.got})"
            )
            continue
        if not plan.is_random:
            with_sample[sizes] = answered
        parity_cases.append(replace(_make_case(captured, plan.name, answered), kind=plan.kind))
        notes += _notes_on_guess(captured, plan, answered)
    return parity_cases, notes


def _cases_of_other_live_values(captured: CapturedCall, like: ParityCase) -> tuple[list[ParityCase], list[str]]:
    """A case with other values of the live parameters, and notes on those that have no other value in it.

    Args:
        captured: the call.
        like: the case that has the call's other inputs.
    """
    specs = captured.signature.live_inputs
    given = like.inputs[: -len(specs)]
    now = like.inputs[-len(specs) :]
    others = other_values(now, torch.Generator().manual_seed(RANDOM_SEED))
    leaves = (*given, *others)
    unchanged = [spec.name for spec, one, other in zip(specs, now, others, strict=True) if torch.equal(one, other)]
    notes = [f"live parameter '{name}' was compared at its present value alone" for name in unchanged]
    try:
        if captured.trial is not None:
            if obstacle := captured.trial.obstacle():
                raise ExportError("model", got=obstacle)
            captured.trial.run(leaves)
        answered = _AnsweredInputs(leaves, captured.reference(leaves), None)
    except ExportError as error:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        return [], [f"no case 'live': the model refuses other values of {names} ({error.got})"]
    return [_make_case(captured, "live", answered)], notes


@dataclass(frozen=True)
class _AnsweredInputs:
    """Inputs with the reference's result; `guess` is None for the user's own."""

    leaves: tuple[torch.Tensor, ...]
    result: Flat
    guess: Guess | None


def _answer_plan(captured: CapturedCall, plan: _PlannedCase, generator: torch.Generator) -> _AnsweredInputs:
    """Answer the sample, or the most plausible inputs that the reference answers with finite numbers.

    Raises:
        ExportError: the reference fails on all of them; the error is that on the most plausible ones.
    """
    if _is_sample(captured, plan):
        leaves = captured.sample_of_sizes(plan.sizes)
        return _AnsweredInputs(leaves, captured.reference(leaves), None)
    first_answered: _AnsweredInputs | None = None
    first_error: ExportError | None = None
    for invented in invented_inputs(captured, plan.sizes, plan.is_random, generator):
        try:
            if captured.trial is not None:
                captured.trial.run(invented.leaves)
            answered = _AnsweredInputs(invented.leaves, captured.reference(invented.leaves), invented.guess)
        except ExportError as error:
            first_error = first_error or error
            continue
        if all(bool(leaf.isfinite().all()) for leaf in answered.result.leaves):
            return answered
        first_answered = first_answered or answered
    if first_answered is None:
        assert first_error is not None, "there are inputs for every plan"
        raise first_error
    return first_answered


def _make_case(captured: CapturedCall, name: str, answered: _AnsweredInputs) -> ParityCase:
    signature = captured.signature
    outputs = outputs_by_name(answered.result, signature.output, [spec.name for spec in signature.outputs])
    guessed = () if answered.guess is None else inputs_with_guesses(captured)
    return ParityCase(name, answered.leaves, outputs, guessed)


def _notes_on_guess(captured: CapturedCall, plan: _PlannedCase, answered: _AnsweredInputs) -> list[str]:
    if answered.guess is None or not answered.guess.name:
        return []
    names = ", ".join(f"'{name}'" for name in inputs_with_guesses(captured))
    return [f"case '{plan.name}': of the integers in {names} {answered.guess.name}, since the model refuses others"]


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
        kept = [_PlannedCase("sample", sizes)]
    reason = f"other inputs may end the process's CUDA context, and can't be tried on the CPU first ({obstacle})"
    if not kept:
        raise ExportError(
            "model",
            got=reason,
            allowed="a sample that a profile holds, since it alone may be compared",
            fix="pass real inputs as examples=[...], or give a sample inside a profile",
        )
    missing = ", ".join(f"'{plan.name}'" for plan in plans if plan not in kept)
    return kept, f"no cases {missing}: {reason}; pass real inputs as examples=[...]"


def _notes_on_unreachable_profiles(captured: CapturedCall) -> list[str]:
    signature = captured.signature
    profiles = captured.profiles
    return [
        f"profile {index} ({profile}) answers nothing: others that are as narrow hold all of its sizes"
        for index, profile in enumerate(profiles)
        if exclusive_sizes(signature, profiles, index, profile.sizes(1)) is None
    ]


def _size_is_not_held(captured: CapturedCall, plan: _PlannedCase, error: ExportError) -> DynamicAxisError:
    """The error for a model that fails at a size inside its profile."""
    sizes = ", ".join(f"{axis} = {size}" for axis, size in plan.sizes.items())
    fix = "narrow the Axis, or correct the line"
    if names := ", ".join(f"'{name}'" for name in inputs_with_guesses(captured)):
        made_up = f"since the values of {names} in this case were made up"
        fix = f"pass real inputs as examples=[...], {made_up}; if these fail too, {fix}"
    return DynamicAxisError(
        f"axes {sizes}" if sizes else "model",
        axis=next(iter(plan.sizes), ""),
        got=error.got,
        allowed="a model that holds over the whole of every axis",
        fix=fix,
        source=error.source,
    )


@dataclass(frozen=True)
class _PlannedCase:
    """A case whose inputs are not made yet.

    Args:
        name: as in `ParityCase`.
        sizes: of every dynamic axis.
        kind: as in `ParityCase`.
    """

    name: str
    sizes: Mapping[str, int]
    kind: str = ""

    @property
    def is_random(self) -> bool:
        """Whether the values are random, and not the sample's."""
        return self.kind == "random"


def _planned_cases(signature: Signature, profiles: Sequence[Profile]) -> Iterator[_PlannedCase]:
    """Every profile's cases: the sample's values at its corners, equal sizes once, and random ones at a size between.

    A profile answers at least one case with the sample's values and the random one, if it answers any sizes.
    """
    for index, profile in enumerate(profiles):
        prefix = f"profile {index} " if len(profiles) > 1 else ""
        seen: list[Mapping[str, int]] = []
        for kind, sizes in zip(("min", "opt", "max", "own"), profile_sizes(signature, profiles, index), strict=False):
            if sizes not in seen:
                seen.append(sizes)
                is_fixed = not profile.ranges  # then the sample is the only one
                yield _PlannedCase(prefix + ("sample" if is_fixed else kind), sizes, "" if is_fixed else kind)
        between = _sizes_between(signature, profile)
        sizes = exclusive_sizes(signature, profiles, index, between) or between
        yield _PlannedCase(prefix + "random", sizes, "random")


def _sizes_between(signature: Signature, profile: Profile) -> dict[str, int]:
    """Sizes strictly inside the profile where there are any, other than opt, in multiples of the axis's step."""
    sizes: dict[str, int] = {}
    for name, (low, opt, high) in profile.ranges.items():
        step = signature.axis(name).multiple_of
        middle = low + (high - low) // (2 * step) * step
        sizes[name] = middle if middle != opt else min(high, middle + step)
    return sizes
