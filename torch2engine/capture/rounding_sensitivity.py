"""Parity cases → the same with the reference's sensitivity: how far rounding alone moves its answers.

Enters: cases with answers, and the precisions that candidates will compute in. Leaves: for every answer, an array of
how far each element moved when inputs and weights moved by half a unit in the last place. Separate because it calls the
model again, with other weights than its own, which the model never notices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.function_rounding import FunctionRounding
from torch2engine.capture.host_trial import HostTrial
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import ExportError
from torch2engine.core.precisions import PRECISION_TYPES, PrecisionType
from torch2engine.core.spec import Signature

__all__ = ["measure_sensitivity", "with_sensitivity"]

_PERTURBATIONS = 3
_SIGNS = 1_000_003  # in the list of random signs; a prime, so that rows of weights don't start at the same place
_STRIDE = 77_773
_LARGE = 1 << 28  # elements of all weights; a larger model is perturbed once for each precision


def with_sensitivity(
    captured: CapturedCall, cases: Sequence[ParityCase], precisions: Sequence[str]
) -> list[ParityCase]:
    """Measure how far the answers to a captured call's cases move by rounding; see `measure_sensitivity`."""
    return measure_sensitivity(captured.reference, captured.signature, cases, precisions, captured.trial)


def measure_sensitivity(
    reference: Reference,
    signature: Signature,
    cases: Sequence[ParityCase],
    precisions: Sequence[str],
    trial: HostTrial | None = None,
) -> list[ParityCase]:
    """Measure how far the reference's answers move by rounding; call it inside `undisturbed`.

    Inputs, parameters and buffers move by half a unit in the last place of the precision, each element up or down at
    random. Integers stay, and so do tensors of whole numbers alone, such as masks: every type holds these exactly.
    Results of functions such as the sigmoid move as well; see `function_rounding`. The module's own tensors are never
    written to. At most one perturbed copy of these tensors exists at a time, on their device.

    Args:
        reference: the module.
        signature: of its call.
        cases: with the reference's answers.
        precisions: names of `PRECISION_TYPES`.
        trial: where moved inputs and weights run first, if the model makes indices of floats.

    Returns:
        the cases with `ParityCase.sensitivity`. A precision is missing there if the model fails on perturbed weights,
        or if these don't fit into memory.
    """
    first = trial if trial is not None and trial.follows_floats else None
    if first is not None and first.obstacle():
        return list(cases)
    # Cases of several profiles may share their inputs, and then their answers move alike.
    distinct: dict[tuple[int, ...], ParityCase] = {}
    for case in cases:
        distinct.setdefault(_identity(case), case)
    measured = {key: dict(case.sensitivity) for key, case in distinct.items()}
    for precision in dict.fromkeys(precisions):
        movements = _movements(reference, signature, list(distinct.values()), precision, first)
        for found, moved in zip(measured.values(), movements, strict=False):
            found[precision] = moved
    if first is not None:
        first.refresh()  # frees its copy of the model
    return [replace(case, sensitivity=measured[_identity(case)]) for case in cases]


def _identity(case: ParityCase) -> tuple[int, ...]:
    """The same for cases whose inputs are the same tensors."""
    return tuple(map(id, case.inputs))


def _movements(
    reference: Reference,
    signature: Signature,
    cases: Sequence[ParityCase],
    precision: str,
    trial: HostTrial | None,
) -> list[dict[str, torch.Tensor]]:
    """The root mean square of every element's movement, by output, for every case.

    Empty if the model fails, or if there is no memory for other weights.
    """
    row = PRECISION_TYPES[precision]
    names = [spec.name for spec in signature.outputs]
    totals: list[dict[str, torch.Tensor]] = [{} for _ in cases]
    count = 1 if _weight_elements(reference.model) > _LARGE else _PERTURBATIONS
    for number in range(count):
        signs = _Signs(RANDOM_SEED + number)
        try:
            weights = _moved_weights(reference.model, row, signs)
        except torch.OutOfMemoryError:  # no room for a second copy of the weights
            return []
        for case, total in zip(cases, totals, strict=True):
            inputs = [_moved(leaf, row, signs) for leaf in case.inputs]
            try:
                if trial is not None:
                    trial.run(inputs, weights)
                with FunctionRounding(signs.like):
                    answers = outputs_by_name(reference.run(inputs, weights), signature.output, names)
            except ExportError:
                return []
            for name, squares in _squared_movements(case.outputs, answers).items():
                total[name] = total[name] + squares if name in total else squares
    return [{name: (squares / count).sqrt().float() for name, squares in total.items()} for total in totals]


def _squared_movements(exact: Mapping[str, torch.Tensor], moved: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Squares of how far every element of the floating outputs moved; 0 for elements that are not finite."""
    squares: dict[str, torch.Tensor] = {}
    for name, value in exact.items():
        other = moved[name]
        if other.shape == value.shape and value.is_floating_point():
            squares[name] = (other.double() - value.double()).nan_to_num(0, 0, 0).square()
    return squares


def _weight_elements(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


class _Signs:
    """Random signs, from one short list: drawing some for each weight would take longer than the model's answers.

    Args:
        seed: of the list.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lists: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._start = 0

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a sign for each element, a view of the list; every call starts elsewhere in it."""
        kind = (tensor.device, tensor.dtype)
        if kind not in self._lists:
            self._lists[kind] = _drawn_signs(self._seed).to(tensor.device, tensor.dtype)
        signs = self._lists[kind]
        self._start = (self._start - _STRIDE) % _SIGNS
        end = self._start + tensor.numel()
        if end > _SIGNS:
            signs = signs.repeat(-(-end // _SIGNS))
        return signs[self._start : end].view(tensor.shape)


@cache
def _drawn_signs(seed: int) -> torch.Tensor:
    """The list of a seed, 1 and -1, drawn once: that takes longer than the answers of a small model."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2, (_SIGNS,), generator=generator, device="cpu")
    return drawn.to(torch.int8).mul_(2).sub_(1)


def _moved_weights(model: nn.Module, row: PrecisionType, signs: _Signs) -> dict[str, torch.Tensor]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: _moved(tensor, row, signs) for name, tensor in tensors}


def _moved(tensor: torch.Tensor, row: PrecisionType, signs: _Signs) -> torch.Tensor:
    """A copy whose elements moved up or down by half a unit in the last place, inside the tensor's own range."""
    values = tensor.detach()
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    if not (is_plain and values.is_floating_point() and values.numel()) or _holds_whole_numbers(values):
        return values.clone()
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    # Integer types have one step for a whole row, floating types a step for each element.
    sizes = _row_maxima(wide) if row.has_one_step else wide
    moved = torch.addcmul(wide, sizes, signs.like(wide), value=row.rounding)
    # A value beyond the tensor's own range might be an index out of range after the model's next step.
    moved = moved.clamp(wide.amin(), wide.amax())
    moved = torch.where(wide.isfinite(), moved, wide) if not bool(wide.isfinite().all()) else moved
    return moved.to(values.dtype)


def _holds_whole_numbers(values: torch.Tensor) -> bool:
    some = values.reshape(-1)[:64]  # mostly enough to see that it does not
    return torch.equal(some, some.round()) and torch.equal(values, values.round())


def _row_maxima(values: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each slice along dimension 0, to be broadcast."""
    if values.ndim < 2:
        return values.abs().amax()
    return values.abs().amax(dim=tuple(range(1, values.ndim)), keepdim=True)
