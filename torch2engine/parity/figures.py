"""Two arrays of one shape and dtype → the figures that a verdict needs.

Enters: numpy arrays or torch tensors on any device. Leaves: `Figures`. Separate because the arithmetic has nothing to
do with verdicts: three passes over blocks in float64, so that no whole copy is made.

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

from torch2engine.core.config import Tolerance

__all__ = ["Figures", "SliceFigure", "dtype_kind", "dtype_name", "element", "measure"]

Floats: TypeAlias = "npt.NDArray[np.float64]"
Bools: TypeAlias = "npt.NDArray[np.bool_]"
Index: TypeAlias = "tuple[slice, ...]"

_BLOCK = 1 << 20  # elements that are held in float64 at a time
_GROUP = 16  # fewer elements have no reliable root mean square: thinner slices are taken with their neighbours
_NOISE = 0.2  # of rel_l2 times the output's size may lie in any slice (a ReLU leaves dead channels), or between rows
_MASK_GAP = 10  # octaves without any element between ordinary values and mask values such as -1e9
# Binary exponents of float64 lie within -1074..1024; an octave is an exponent plus the offset.
_OCTAVE_OFFSET = 1100
_OCTAVE_COUNT = 2200


@dataclass(frozen=True)
class SliceFigure:
    """The slice that fits worst, or a run of thin slices.

    Args:
        axis: the dimension.
        start, stop: its rows ``start:stop``.
        share: root mean square of the differences over that of the reference; for integers the share that differs.
        excess: the same over what is allowed there.
    """

    axis: int
    start: int
    stop: int
    share: float
    excess: float

    def __str__(self) -> str:
        rows = str(self.start) if self.stop == self.start + 1 else f"{self.start}:{self.stop}"
        return f"[{':, ' * self.axis}{rows}]"


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
        worst_slice: None if the output has but one.
        following: correlation of the steps from row to row; None if the reference hardly changes or has few elements.
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
    worst_slice: SliceFigure | None
    following: float | None


def dtype_name(value: Any) -> str:
    """Give the dtype as PyTorch spells it, e.g. ``"float16"``; "" for what is no array."""
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
        octave_counts: how many elements of the reference each octave of magnitudes has.
    """

    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    misplaced: int = 0
    first_misplaced: tuple[int, ...] = ()
    compared: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    octave_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_OCTAVE_COUNT, np.int64))

    def scale(self) -> float:
        """Choose a power of two that brings the reference below 1, so that no square over- or underflows."""
        occupied = np.flatnonzero(self.octave_counts)
        if not len(occupied):
            return 1.0
        exponent = int(occupied[-1]) - _OCTAVE_OFFSET
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
        magnitudes: Floats = np.abs(r[is_finite_r & (r != 0)])
        octaves = np.frexp(magnitudes)[1] + _OCTAVE_OFFSET
        survey.octave_counts += np.bincount(octaves, minlength=_OCTAVE_COUNT)
    return survey


@dataclass
class _SliceSums:
    """Sums over the slices along one dimension; slices thinner than _GROUP elements share an entry.

    Args:
        axis, size: the dimension and its length.
        per_group: slices in one entry.
        reference, difference: sums of squares; for integers `difference` counts those that differ.
        count: elements.
    """

    axis: int
    size: int
    per_group: int
    reference: Floats
    difference: Floats
    count: Floats

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int) -> _SliceSums:
        """Start with zeros."""
        thickness = math.prod(shape) // shape[axis]
        per_group = -(-_GROUP // thickness)
        groups = max(1, shape[axis] // per_group)
        return cls(axis, shape[axis], per_group, np.zeros(groups), np.zeros(groups), np.zeros(groups))

    def groups(self, index: Index) -> npt.NDArray[np.intp]:
        """Give the entry of each row of a block."""
        rows = np.arange(int(index[self.axis].start), int(index[self.axis].stop))
        return np.minimum(rows // self.per_group, len(self.count) - 1)

    def add(self, index: Index, reference: Floats, difference: Floats, counted: Bools) -> None:
        """Add a block."""
        others = tuple(axis for axis in range(reference.ndim) if axis != self.axis)
        groups = self.groups(index)
        for total, values in ((self.reference, reference), (self.difference, difference), (self.count, counted)):
            total += np.bincount(groups, values.sum(axis=others), len(total))

    def worst(self, allowed: Floats, found: Floats, share: Floats) -> SliceFigure:
        """Find the entry that exceeds most what is allowed."""
        excess = _ratio(found, allowed)
        group = int(np.argmax(excess))
        is_last = group == len(excess) - 1
        stop = self.size if is_last else (group + 1) * self.per_group
        return SliceFigure(self.axis, group * self.per_group, stop, float(share[group]), float(excess[group]))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide, where 0 / 0 is 0 and anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(above == 0, 0.0, above / below)


def _ratio_of(above: float, below: float) -> float:
    return float(_ratio(np.array([above]), np.array([below]))[0])


def _root_mean_square(squares: Floats, count: Floats) -> Floats:
    return np.sqrt(squares / np.maximum(count, 1))


def _sum_of_squares(values: Floats) -> float:
    return float(np.square(values).sum())


@dataclass
class _Sums:
    """Results of the second pass: sums of squares and products, of scaled values.

    r is the reference, c the candidate, d their difference; `rc` is the sum of r times c. Masks are left out but in
    `rr_with_masks`. A step is the difference between neighbours along the first dimension that has any.
    """

    slices: list[_SliceSums]
    rr: float = 0.0
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

    def add_values(self, index: Index, r: Floats, c: Floats, counted: Bools, differs: Bools | None) -> None:
        """Add a block.

        Args:
            index: where it lies.
            r, c: its scaled values, 0 where they don't count.
            counted: which elements count.
            differs: which elements differ, for integers; their slices are judged by it.
        """
        squares = np.square(r)
        differences: Any = np.square(c - r)
        self.cc += _sum_of_squares(c)
        self.rc += float((r * c).sum())
        self.count += int(counted.sum())
        self.rr += float(squares.sum())
        self.dd += float(differences.sum())
        if differs is not None:
            self.wrong += int(differs.sum())
            differences = differs
        for sums in self.slices:
            sums.add(index, squares, differences, counted)


def _add_up(reference: _Operand, candidate: _Operand, scale: float, mask_threshold: float) -> _Sums:
    """Make the second pass."""
    shape = reference.shape
    sums = _Sums([_SliceSums.of(shape, axis) for axis in range(len(reference.value.shape))])
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
        sums.add_values(index, r[inside], c[inside], counted[inside], _differs(reference, candidate, index))
    return sums


def _differs(reference: _Operand, candidate: _Operand, index: Index) -> Bools | None:
    """Find which integers differ in a block; None for other dtypes."""
    if reference.kind != "exact":
        return None
    return np.asarray(reference.raw(index)) != np.asarray(candidate.raw(index))


def _worst_slice(sums: _Sums, tolerance: Tolerance, floor: float, exact: bool) -> SliceFigure | None:
    """Find the slice that fits worst along any dimension."""
    size = math.sqrt(sums.rr / sums.count) if sums.count else 0.0
    noise = max(_NOISE * tolerance.rel_l2 * size, floor)
    candidates: list[SliceFigure] = []
    for slices in sums.slices:
        if len(slices.count) < 2:
            continue
        if exact:
            share = _ratio(slices.difference, slices.count)
            candidates.append(slices.worst(np.full_like(share, 0.5), share, share))
        else:
            reference = _root_mean_square(slices.reference, slices.count)
            difference = _root_mean_square(slices.difference, slices.count)
            allowed = tolerance.max_rel * reference + noise
            candidates.append(slices.worst(allowed, difference, _ratio(difference, reference)))
    return max(candidates, key=lambda figure: figure.excess, default=None)


@dataclass
class _WorstElement:
    """Results of the third pass.

    Args:
        largest_difference: of scaled values.
        ratio: the largest difference in units of the element plus its row.
        index: where that is.
    """

    index: tuple[int, ...]
    largest_difference: float = 0.0
    ratio: float = 0.0


def _find_worst_element(
    reference: _Operand, candidate: _Operand, scale: float, rows: _SliceSums, floor: float, max_rel: float
) -> _WorstElement:
    """Make the third pass."""
    row_sizes = _root_mean_square(rows.reference, rows.count)
    worst = _WorstElement((0,) * len(reference.shape))
    for index in _blocks(reference.shape):
        r = reference.read(index) * scale
        c = candidate.read(index) * scale
        is_finite = np.isfinite(r) & np.isfinite(c)
        r = np.where(is_finite, r, 0.0)
        c = np.where(is_finite, c, 0.0)
        difference = np.abs(c - r)
        differs = _differs(reference, candidate, index)
        if differs is not None:
            # Above 2**53 neighbours are one float64; they still differ by 1 at least.
            difference = np.where(differs, np.maximum(difference, scale), 0.0)
        unit = np.abs(r) + np.expand_dims(row_sizes[rows.groups(index)], tuple(range(1, r.ndim)))
        ratio = _ratio(difference, unit)
        ratio = np.where(difference <= floor, np.minimum(ratio, max_rel), ratio)
        worst.largest_difference = max(worst.largest_difference, float(difference.max()))
        highest = float(ratio.max())
        if highest > worst.ratio:
            worst.ratio = highest
            worst.index = _position(index, int(np.argmax(ratio)), ratio.shape)
    return worst


def measure(reference: Any, candidate: Any, tolerance: Tolerance) -> Figures:
    """Measure a candidate against its reference.

    Args:
        reference, candidate: of one shape, with at least one element, and one dtype that `dtype_kind` knows.
        tolerance: its `abs` decides which differences count as none.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _measure(_Operand(reference), _Operand(candidate), len(reference.shape), tolerance)


def _measure(reference: _Operand, candidate: _Operand, rank: int, tolerance: Tolerance) -> Figures:
    survey = _survey(reference, candidate)
    scale = survey.scale()
    sums = _add_up(reference, candidate, scale, survey.mask_threshold())
    floor = _negligible_difference(sums, survey, scale, tolerance)
    worst = _find_worst_element(reference, candidate, scale, sums.slices[0], floor, tolerance.max_rel)
    norm_r = math.sqrt(sums.rr)
    norm_c = math.sqrt(sums.cc)
    rel_l2 = _ratio_of(math.sqrt(sums.dd), norm_r)
    if math.sqrt(sums.dd / max(sums.count, 1)) <= floor:
        rel_l2 = min(rel_l2, tolerance.rel_l2)
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
        worst_slice=_worst_slice(sums, tolerance, floor, reference.kind == "exact"),
        following=_step_correlation(sums, tolerance, floor),
    )
    if survey.misplaced:
        figures = replace(figures, worst_index=survey.first_misplaced[:rank])
    if not survey.compared:
        figures = replace(figures, **dict.fromkeys(("max_abs", "max_rel", "rel_l2", "cosine", "gain"), math.nan))
    return figures


def _negligible_difference(sums: _Sums, survey: _Survey, scale: float, tolerance: Tolerance) -> float:
    """Find the scaled difference that counts as none: `Tolerance.abs`, but little beside the reference's own size."""
    size = math.sqrt(sums.rr_with_masks / max(survey.compared, 1))
    return min(tolerance.abs * scale, tolerance.rel_l2 * size) if size else tolerance.abs * scale


def _step_correlation(sums: _Sums, tolerance: Tolerance, floor: float) -> float | None:
    """Correlate the steps, if the reference's own steps stand out of the noise."""
    visible = max(_NOISE * tolerance.rel_l2 * math.sqrt(sums.rr), floor * math.sqrt(sums.count))
    if sums.step_count < _GROUP or math.sqrt(sums.step_rr) <= visible:
        return None
    norms = math.sqrt(sums.step_rr) * math.sqrt(sums.step_cc)
    return sums.step_rc / norms if norms else 0.0
