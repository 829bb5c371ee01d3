"""Two arrays of one shape and dtype → the figures that a verdict needs.

Enters: numpy arrays or torch tensors on any device. Leaves: `Figures`. Separate because the arithmetic does not depend
on verdicts. It makes three passes over blocks in float64, so that no whole copy is made.

1. `_survey` finds what is finite, and how large the reference is.
2. `_add_up` sums squares and products, for norms of the whole and of every slice.
3. `_find_worst_element` compares element by element with the norms of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torch2engine.parity.error_histogram import ErrorHistogram
from torch2engine.parity.tolerance_bounds import MEANINGFUL, Bounds
from torch2engine.parity.worst_part import (
    GROUP,
    NOISE,
    OCTAVE_COUNT,
    OCTAVE_OFFSET,
    Allowance,
    BlockSquares,
    Bools,
    Floats,
    MagnitudeSums,
    PartFigure,
    SliceSums,
    octaves,
    ratio,
)

__all__ = ["Figures", "dtype_kind", "dtype_name", "element", "measure"]

Index: TypeAlias = "tuple[slice, ...]"

_BLOCK = 1 << 20  # elements that are held in float64 at a time
_MASK_GAP = 10  # octaves without any element between ordinary values and mask values such as -1e9
_SATURATED = 1e-6  # a probability this near to 0 or 1 shows nothing about its score
_DEAD = 0.99  # share of zeros that leaves little to compare
_LIKELY = 0.3  # an element moves at least by this share of the movement of elements of its magnitude
_NO_ANSWER = 0.1  # an output that rounding moves by this share of its size is only noise around zero


@dataclass(frozen=True)
class Figures:
    """Figures of one output; every norm leaves out elements that are not finite, and mask values.

    Args:
        max_abs, max_rel, rel_l2, cosine, mismatch: as in `report.OutputParity`.
        worst_index: where max_rel is, or the first misplaced element.
        nonfinite_reference, nonfinite_candidate: counts of NaN and ±Inf.
        misplaced: elements that are not finite in one and not the same in the other.
        compared: elements that are finite in both.
        zeros, constant: the candidate is 0, or one value, throughout.
        gain: ‖candidate‖₂ / ‖reference‖₂.
        worst_part: the slice or the elements of one magnitude that fit worst; None if the output has but one part.
        sensitivity: how far rounding alone moves the reference, relative to its size; NaN if it was not measured.
        allowed: largest rel_l2 that the bounds and the sensitivity allow.
        weakness: why equal answers prove little; "" if they prove something.
        following: correlation of the steps from row to row; None if the reference hardly changes or has few elements.
        error_decades: as in `OutputParity`.
    """

    max_abs: float
    max_rel: float
    rel_l2: float
    cosine: float
    mismatch: float
    worst_index: tuple[int, ...]
    nonfinite_reference: int
    nonfinite_candidate: int
    misplaced: int
    compared: int
    zeros: bool
    constant: bool
    gain: float
    worst_part: PartFigure | None
    sensitivity: float
    allowed: float
    weakness: str
    following: float | None
    error_decades: tuple[int, ...]


def dtype_name(value: Any) -> str:
    """Give the dtype as PyTorch spells it, e.g. ``"float16"``; "" for an object that is not an array."""
    dtype = getattr(value, "dtype", None)
    return "" if dtype is None else str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def dtype_kind(name: str) -> str:
    """Classify a dtype: "float", "complex", "exact" (integers and bool), or "" for one that can't be compared."""
    for prefix, kind in (("float", "float"), ("bfloat", "float"), ("complex", "complex")):
        if name.startswith(prefix):
            return kind
    return "exact" if name.startswith(("int", "uint", "bool")) else ""


def element(value: Any, index: tuple[int, ...]) -> Any:
    """Give one element as a Python number."""
    return value[index].item()


class _Operand:
    """An array that is read block by block; complex numbers are pairs along one more dimension."""

    def __init__(self, value: Any) -> None:
        self.value = value if len(value.shape) else value.reshape((1,))
        self.kind = dtype_kind(dtype_name(value))
        self.shape: tuple[int, ...] = (*self.value.shape, 2) if self.kind == "complex" else tuple(self.value.shape)

    def raw(self, index: Index) -> Any:
        """Give a block in its own dtype, in host memory."""
        part = self.value[index[: len(self.value.shape)]]
        return part.detach().cpu().resolve_conj().resolve_neg() if hasattr(part, "detach") else part

    def read(self, index: Index) -> Floats:
        """Give a block in float64."""
        part = self.raw(index)
        return np.stack([_double(part.real), _double(part.imag)], -1) if self.kind == "complex" else _double(part)


@dataclass(frozen=True)
class _Operands:
    """The arrays that are read block by block: the two answers, and the reference's movement by rounding."""

    reference: _Operand
    candidate: _Operand
    movement: _Operand | None

    def movement_of(self, index: Index) -> Floats:
        """Give a block of movements. A movement that was not measured, or is not finite, is 0."""
        if self.movement is None:
            return np.zeros(tuple(part.stop - part.start for part in index))
        block = self.movement.read(index)
        return np.where(np.isfinite(block), block, 0.0)


def _double(part: Any) -> Floats:
    return part.double().numpy() if hasattr(part, "detach") else part.astype(np.float64)


def _blocks(shape: tuple[int, ...]) -> Iterator[Index]:
    """Cover a shape, in order, with rectangles of at most _BLOCK elements."""
    axis = next(k for k in range(len(shape)) if math.prod(shape[k + 1 :]) <= _BLOCK)
    step = max(1, _BLOCK // max(1, math.prod(shape[axis + 1 :])))
    for outer in product(*(range(size) for size in shape[:axis])):
        head = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, shape[axis], step):
            body = slice(start, min(start + step, shape[axis]))
            yield (*head, body, *(slice(0, size) for size in shape[axis + 1 :]))


def _position(index: Index, flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the position of a block's flat element in the whole."""
    return tuple(part.start + int(i) for part, i in zip(index, np.unravel_index(flat, shape), strict=True))


@dataclass
class _Survey:
    """Results of the first pass.

    Args:
        lowest, highest: of the candidate, where both are finite.
        zeros, saturated: how many elements of the reference are 0, and how many are almost 0 or 1.
        least, largest: of the finite elements of the reference.
        octave_counts: for each octave of magnitudes, the number of the reference's elements in it.
    """

    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    misplaced: int = 0
    first_misplaced: tuple[int, ...] = ()
    compared: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    zeros: int = 0
    saturated: int = 0
    least: float = math.inf
    largest: float = -math.inf
    octave_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(OCTAVE_COUNT, np.int64))

    def add_reference(self, finite: Floats) -> None:
        """Add the finite elements of a block of the reference."""
        if not finite.size:
            return
        self.zeros += int((finite == 0).sum())
        self.saturated += int(((np.abs(finite) < _SATURATED) | (np.abs(finite - 1) < _SATURATED)).sum())
        self.least = min(self.least, float(finite.min()))
        self.largest = max(self.largest, float(finite.max()))

    def weakness(self, kind: str, elements: int) -> str:
        """Say why equal answers would prove little, from the reference's values alone; "" if there is no reason."""
        finite = elements - self.nonfinite_reference
        if not finite:
            return "no element of it is finite"
        if finite > 1 and self.least == self.largest:
            return "it is all zeros" if self.largest == 0 else f"it is {self.largest:.6g} throughout"
        if kind == "exact" or finite < GROUP:
            return ""
        if self.saturated == finite:
            return "every element is 0 or 1, as after a saturated softmax or sigmoid"
        return f"{self.zeros / finite:.3g} of it is 0, as behind dead ReLUs" if self.zeros > _DEAD * finite else ""

    def scale(self) -> float:
        """Choose a power of two that brings the reference below 1, so that no square over- or underflows."""
        occupied = np.flatnonzero(self.octave_counts)
        if not len(occupied):
            return 1.0
        exponent = int(occupied[-1]) - OCTAVE_OFFSET
        return 2.0 ** -max(exponent, -1000)

    def mask_threshold(self) -> float:
        """Find the scaled magnitude from which on elements are mask values; infinite if there are none.

        Mask values are two or more elements in the top two octaves, alone above a wide gap.
        """
        occupied = np.flatnonzero(self.octave_counts)
        if not len(occupied):
            return math.inf
        top = occupied[-1]
        ordinary = occupied[occupied < top - 1]
        has_gap = len(ordinary) > 0 and top - 1 - ordinary[-1] > _MASK_GAP
        return 0.25 if has_gap and self.octave_counts[top - 1 : top + 1].sum() >= 2 else math.inf


def _survey(reference: _Operand, candidate: _Operand) -> _Survey:
    """Make the first pass."""
    survey = _Survey()
    for index in _blocks(reference.shape):
        r = reference.read(index)
        c = candidate.read(index)
        is_finite_r = np.isfinite(r)
        is_finite_c = np.isfinite(c)
        both = is_finite_r & is_finite_c
        misplaced = ~both & ~((r == c) | (np.isnan(r) & np.isnan(c)))
        if not survey.misplaced and misplaced.any():
            survey.first_misplaced = _position(index, int(np.argmax(misplaced)), misplaced.shape)
        survey.misplaced += int(misplaced.sum())
        survey.compared += int(both.sum())
        survey.nonfinite_reference += int((~is_finite_r).sum())
        survey.nonfinite_candidate += int((~is_finite_c).sum())
        if both.any():
            survey.lowest = min(survey.lowest, float(c[both].min()))
            survey.highest = max(survey.highest, float(c[both].max()))
        survey.add_reference(r[is_finite_r])
        magnitudes: Floats = np.abs(r[is_finite_r & (r != 0)])
        survey.octave_counts += np.bincount(octaves(magnitudes), minlength=OCTAVE_COUNT)
    return survey


def _ratio_of(above: float, below: float) -> float:
    return float(ratio(np.array([above]), np.array([below]))[0])


def _sum_of_squares(values: Floats) -> float:
    return float(np.square(values).sum())


@dataclass
class _Sums:
    """Results of the second pass: sums of squares and products, of scaled values.

    r is the reference, c the candidate, d their difference, n the reference's movement by rounding; `rc` is the sum of
    r times c. Masks are left out but in `rr_with_masks`. A step is the difference between neighbours along the first
    dimension that has any.
    """

    slices: list[SliceSums]
    magnitudes: MagnitudeSums
    errors: ErrorHistogram
    rr: float = 0.0
    nn: float = 0.0
    cc: float = 0.0
    rc: float = 0.0
    dd: float = 0.0
    count: int = 0
    rr_with_masks: float = 0.0
    wrong: int = 0
    step_count: int = 0
    step_rr: float = 0.0
    step_cc: float = 0.0
    step_rc: float = 0.0

    def add_steps(self, steps_r: Floats, steps_c: Floats) -> None:
        """Add the steps of a block."""
        self.step_count += steps_r.size
        self.step_rr += _sum_of_squares(steps_r)
        self.step_cc += _sum_of_squares(steps_c)
        self.step_rc += float((steps_r * steps_c).sum())

    def add_values(self, index: Index, r: Floats, c: Floats, n: Floats, counted: Bools, differs: Bools | None) -> None:
        """Add a block.

        Args:
            index: where the block lies.
            r, c, n: the block's scaled values; 0 for elements that don't count.
            counted: which elements count.
            differs: for integers, which elements differ; the bounds of their slices count these.
        """
        difference = c - r
        differences = np.square(difference)
        self.errors.add(difference, counted)
        self.cc += _sum_of_squares(c)
        self.rc += float((r * c).sum())
        self.count += int(counted.sum())
        self.rr += _sum_of_squares(r)
        self.nn += _sum_of_squares(n)
        self.dd += float(differences.sum())
        if differs is not None:
            self.wrong += int(differs.sum())
            differences = differs.astype(np.float64)
        block = BlockSquares(np.square(r), differences, np.square(n), counted, counted & (r == 0))
        for sums in self.slices:
            sums.add(index, block)
        self.magnitudes.add(r, block)


def _add_up(operands: _Operands, scale: float, mask_threshold: float) -> _Sums:
    """Make the second pass."""
    reference = operands.reference
    candidate = operands.candidate
    movement = operands.movement
    shape = reference.shape
    axes = range(len(reference.value.shape))
    sums = _Sums([SliceSums(shape, axis, movement is not None) for axis in axes], MagnitudeSums(), ErrorHistogram())
    along = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    for index in _blocks(shape):
        # Steps along a dimension need one row more than the block has.
        longer = slice(index[along].start, min(index[along].stop + 1, shape[along]))
        wide = (*index[:along], longer, *index[along + 1 :])
        inside = tuple(slice(0, part.stop - part.start) for part in index)
        r = reference.read(wide) * scale
        c = candidate.read(wide) * scale
        is_finite = np.isfinite(r) & np.isfinite(c)
        sums.rr_with_masks += _sum_of_squares(r[inside][is_finite[inside]])
        counted = is_finite & (np.abs(np.where(is_finite, r, 0.0)) < mask_threshold)
        r = np.where(counted, r, 0.0)
        c = np.where(counted, c, 0.0)
        sums.add_steps(np.diff(r, axis=along), np.diff(c, axis=along))
        n = np.where(counted[inside], operands.movement_of(index) * scale, 0.0)
        differs = _differs(reference, candidate, index)
        sums.add_values(index, r[inside], c[inside], n, counted[inside], differs)
    return sums


def _differs(reference: _Operand, candidate: _Operand, index: Index) -> Bools | None:
    """Find which integers differ in a block; None for other dtypes."""
    if reference.kind != "exact":
        return None
    return np.asarray(reference.raw(index)) != np.asarray(candidate.raw(index))


def _worst_part(sums: _Sums, allowance: Allowance, scale: float, exact: bool) -> PartFigure | None:
    """Find the part that fits worst: a slice along any dimension, or the elements of one magnitude."""
    slices = [one for one in sums.slices if len(one.count) > 1]
    if exact:
        candidates = [one.worst_exact_slice() for one in slices]
    else:
        candidates = [one.worst_slice(allowance) for one in slices]
        # Without measured movements, nobody can tell small elements from noise.
        magnitude = sums.magnitudes.worst_magnitude(allowance, scale) if allowance.noise else None
        candidates += [] if magnitude is None else [magnitude]
    return max(candidates, key=lambda figure: figure.excess, default=None)


@dataclass
class _WorstElement:
    """Results of the third pass.

    Args:
        largest_difference: of scaled values.
        ratio: the largest difference in units of the element plus its surroundings.
        index: where the largest ratio is.
    """

    index: tuple[int, ...]
    largest_difference: float = 0.0
    ratio: float = 0.0


class _Surroundings:
    """The unit of each element, besides its own size: its row's size, or how far rounding moves it.

    Args:
        sums: the results of the second pass.
        allowance: the largest errors that the output's parts may have.
        rel_l2: the bound of this name.
    """

    def __init__(self, sums: _Sums, allowance: Allowance, rel_l2: float) -> None:
        slices = sums.slices
        self._slices = slices
        self._magnitudes = sums.magnitudes
        self._allowance = allowance
        self._row_sizes = slices[0].reference
        self._profiles = [one.noise / allowance.noise for one in slices] if allowance.noise else []
        # An element may be off by max_rel times its unit, and so by max_rel / rel_l2 times its share of the noise.
        self._gain = allowance.gain / rel_l2 if rel_l2 else 0.0

    def units(self, index: Index, r: Floats, n: Floats) -> Floats:
        """Give the unit in which each element's difference is measured.

        Args:
            index: where the block lies.
            r, n: its scaled values and movements.
        """
        row = self._slices[0].along(self._row_sizes, index, r.ndim)
        if not self._profiles:
            return np.abs(r) + row
        movement = self._movements(index, r, n)
        return np.abs(r) + np.where((movement > 0) & (r != 0), self._gain * movement, row)

    def floors(self, index: Index, r: Floats, n: Floats) -> Floats:
        """Give, for each element of a block, the largest difference that counts as zero; arguments as for `units`."""
        if not self._profiles:
            return np.full(r.shape, self._allowance.floor)
        return np.where(self._movements(index, r, n) > 0, self._allowance.smallest, self._allowance.floor)

    def _movements(self, index: Index, r: Floats, n: Floats) -> Floats:
        """How far each element moves: as measured, but no less than its rows and columns make likely.

        By chance, a few perturbations may not move an element. Then the product of the movements along all dimensions
        estimates the element's movement. Where slices share an entry with their neighbours, the movement of elements
        of the same magnitude is the estimate.
        """
        if any(one.per_group > 1 and one.size > 1 for one in self._slices):
            return np.maximum(n, _LIKELY * self._magnitudes.likely_noise(r))
        likely: Floats = np.full((1,) * r.ndim, self._allowance.noise)
        for one, profile in zip(self._slices, self._profiles, strict=True):
            likely = likely * one.along(profile, index, r.ndim)
        return np.maximum(n, likely)


def _find_worst_element(
    operands: _Operands, scale: float, surroundings: _Surroundings, max_rel: float
) -> _WorstElement:
    """Make the third pass."""
    reference = operands.reference
    candidate = operands.candidate
    worst = _WorstElement((0,) * len(reference.shape))
    for index in _blocks(reference.shape):
        r = reference.read(index) * scale
        c = candidate.read(index) * scale
        is_finite = np.isfinite(r) & np.isfinite(c)
        r = np.where(is_finite, r, 0.0)
        c = np.where(is_finite, c, 0.0)
        n = operands.movement_of(index) * scale
        difference = np.abs(c - r)
        differs = _differs(reference, candidate, index)
        if differs is not None:
            # Above 2**53 neighbours are one float64; they still differ by 1 at least.
            difference = np.where(differs, np.maximum(difference, scale), 0.0)
        found = ratio(difference, surroundings.units(index, r, n))
        found = np.where(difference <= surroundings.floors(index, r, n), np.minimum(found, max_rel), found)
        worst.largest_difference = max(worst.largest_difference, float(difference.max()))
        highest = float(found.max())
        if highest > worst.ratio:
            worst.ratio = highest
            worst.index = _position(index, int(np.argmax(found)), found.shape)
    return worst


def measure(reference: Any, candidate: Any, bounds: Bounds, movement: Any = None) -> Figures:
    """Measure a candidate against its reference.

    Args:
        reference, candidate: of one shape, with at least one element, and one dtype that `dtype_kind` knows.
        bounds: decide which differences count as none, and how far parts may be off.
        movement: how far rounding alone moves each element of a floating reference, in its shape, or None.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        operands = _Operands(_Operand(reference), _Operand(candidate), _movement_operand(reference, movement))
        return _measure(operands, len(reference.shape), bounds)


def _movement_operand(reference: Any, movement: Any) -> _Operand | None:
    """Give the movement in a form to read block by block; None if it was not measured or the output is not floating."""
    if movement is None or dtype_kind(dtype_name(reference)) != "float":
        return None
    return _Operand(movement)


def _measure(operands: _Operands, rank: int, bounds: Bounds) -> Figures:
    reference = operands.reference
    survey = _survey(reference, operands.candidate)
    scale = survey.scale()
    sums = _add_up(operands, scale, survey.mask_threshold())
    sensitivity = _ratio_of(math.sqrt(sums.nn), math.sqrt(sums.rr)) if operands.movement is not None else math.nan
    allowed = bounds.allowed_rel_l2(sensitivity)
    allowance = _allowance(sums, survey, scale, bounds, allowed)
    surroundings = _Surroundings(sums, allowance, bounds.rel_l2)
    worst = _find_worst_element(operands, scale, surroundings, bounds.max_rel)
    norm_r = math.sqrt(sums.rr)
    norm_c = math.sqrt(sums.cc)
    rel_l2 = _ratio_of(math.sqrt(sums.dd), norm_r)
    if math.sqrt(sums.dd / max(sums.count, 1)) <= allowance.floor:
        rel_l2 = min(rel_l2, allowed)
    norms = norm_r * norm_c
    figures = Figures(
        max_abs=worst.largest_difference / scale,
        max_rel=worst.ratio,
        rel_l2=rel_l2,
        cosine=sums.rc / norms if norms else float(sums.rr == sums.cc),
        mismatch=sums.wrong / math.prod(reference.shape),
        worst_index=worst.index[:rank],
        nonfinite_reference=survey.nonfinite_reference,
        nonfinite_candidate=survey.nonfinite_candidate,
        misplaced=survey.misplaced,
        compared=survey.compared,
        zeros=survey.lowest == survey.highest == 0,
        constant=survey.lowest == survey.highest,
        gain=_ratio_of(norm_c, norm_r),
        worst_part=_worst_part(sums, allowance, scale, reference.kind == "exact"),
        sensitivity=sensitivity,
        allowed=allowed,
        weakness=_weakness(survey, sums, reference, sensitivity, allowed, bounds),
        following=_step_correlation(sums, allowance),
        error_decades=() if reference.kind == "exact" else sums.errors.decades(norm_r / math.sqrt(max(sums.count, 1))),
    )
    if survey.misplaced:
        figures = replace(figures, worst_index=survey.first_misplaced[:rank])
    if not survey.compared:
        figures = replace(figures, **dict.fromkeys(("max_abs", "max_rel", "rel_l2", "cosine", "gain"), math.nan))
    return figures


def _weakness(
    survey: _Survey, sums: _Sums, reference: _Operand, sensitivity: float, allowed: float, bounds: Bounds
) -> str:
    """Say why equal answers would prove little; "" if they prove something."""
    reason = survey.weakness(reference.kind, math.prod(reference.shape))
    if reason:
        return reason
    if sums.step_count >= GROUP and not sums.step_rr:
        return "all its rows are equal"
    if sensitivity >= 1:
        return "it is rounding noise"
    if allowed > max(MEANINGFUL, bounds.rel_l2):
        return f"rounding alone moves it by {sensitivity:.2g} of its size, so that an error of {allowed:.2g} is allowed"
    return ""


def _allowance(sums: _Sums, survey: _Survey, scale: float, bounds: Bounds, allowed: float) -> Allowance:
    """Find the largest errors of parts, and the largest difference that counts as zero.

    That difference is `Tolerance.abs`, limited to a small part of the reference's size. The limit does not hold for a
    reference that is only noise.
    """
    size = math.sqrt(sums.rr / max(sums.count, 1))
    noise = math.sqrt(sums.nn / max(sums.count, 1))
    size_with_masks = math.sqrt(sums.rr_with_masks / max(survey.compared, 1))
    floor = bounds.abs * scale
    is_noise = noise > 0 and noise * max(bounds.factor, 1 / _NO_ANSWER) >= size
    if size_with_masks and not is_noise:
        floor = min(floor, bounds.rel_l2 * size_with_masks)
    smallest = floor if is_noise else min(floor, bounds.smallest * scale)
    return Allowance(allowed * size, noise, bounds.max_rel, floor, smallest)


def _step_correlation(sums: _Sums, allowance: Allowance) -> float | None:
    """Correlate the steps, if the reference's own steps stand out of the noise."""
    visible = max(NOISE * allowance.level, allowance.floor) * math.sqrt(sums.count)
    if sums.step_count < GROUP or math.sqrt(sums.step_rr) <= visible:
        return None
    norms = math.sqrt(sums.step_rr) * math.sqrt(sums.step_cc)
    return sums.step_rc / norms if norms else 0.0
