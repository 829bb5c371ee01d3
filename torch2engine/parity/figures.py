"""Two arrays of one shape and dtype → the figures that a verdict needs.

Enters: numpy arrays or torch tensors on any device. Leaves: `Figures`. A room of its own, below `parity`, because the
arithmetic (three passes over blocks in float64, so that no whole copy is made) has nothing to do with verdicts.
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
Index: TypeAlias = "tuple[slice, ...]"

_BLOCK = 1 << 20  # elements that are held in float64 at a time
_GROUP = 16  # fewer elements have no reliable root mean square: thinner slices are taken with their neighbours
_NOISE = 0.2  # of rel_l2 times the output's size may lie in any slice (a ReLU leaves dead channels), or between rows
_GAP = 10  # octaves without any element between ordinary values and mask values such as -1e9


@dataclass(frozen=True)
class SliceFigure:
    """The slice (or run of thin slices) that fits worst: rows ``start:stop`` of dimension `axis`.

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
    """What was measured; every norm leaves out elements that are not finite, and mask values.

    max_abs, max_rel, rel_l2, cosine, mismatch: as in `parity.OutputParity`.
    worst_index: where max_rel is, or the first misplaced element.
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
    """The dtype as PyTorch spells it, e.g. ``"float16"``; "" for what is no array."""
    dtype = getattr(value, "dtype", None)
    return "" if dtype is None else str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def dtype_kind(name: str) -> str:
    """ "float", "complex", "exact" (integers and bool), or "" for what can't be compared."""
    for prefix, kind in (("float", "float"), ("bfloat", "float"), ("complex", "complex")):
        if name.startswith(prefix):
            return kind
    return "exact" if name.startswith(("int", "uint", "bool")) else ""


def element(value: Any, index: tuple[int, ...]) -> Any:
    """One element as a Python number."""
    return value[index].item()


class _Operand:
    """An array that is read block by block; complex numbers are pairs along one more dimension."""

    def __init__(self, value: Any) -> None:
        self.value = value if len(value.shape) else value.reshape((1,))
        self.kind = dtype_kind(dtype_name(value))
        self.shape: tuple[int, ...] = (*self.value.shape, 2) if self.kind == "complex" else tuple(self.value.shape)

    def raw(self, index: Index) -> Any:
        part = self.value[index[: len(self.value.shape)]]
        return part.detach().cpu().resolve_conj().resolve_neg() if hasattr(part, "detach") else part

    def read(self, index: Index) -> Floats:
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


def _at(index: Index, flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The position of a block's flat element in the whole."""
    return tuple(part.start + int(i) for part, i in zip(index, np.unravel_index(flat, shape), strict=True))


@dataclass
class _Survey:
    """The first pass: what is finite, and how large the reference is."""

    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    misplaced: int = 0
    first_misplaced: tuple[int, ...] = ()
    compared: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    octaves: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2200, np.int64))

    def scale(self) -> float:
        """A power of two that brings the reference below 1, so that no square over- or underflows."""
        found = np.flatnonzero(self.octaves)
        return 2.0 ** -max(int(found[-1]) - 1100, -1000) if len(found) else 1.0

    def ceiling(self) -> float:
        """Scaled magnitude from which on elements are mask values: two or more, alone above a gap of _GAP octaves."""
        found = np.flatnonzero(self.octaves)
        if not len(found):
            return math.inf
        top = found[-1]
        below = found[found < top - 1]
        alone = len(below) > 0 and top - 1 - below[-1] > _GAP
        return 0.25 if alone and self.octaves[top - 1 : top + 1].sum() >= 2 else math.inf


def _survey(reference: _Operand, candidate: _Operand) -> _Survey:
    found = _Survey()
    for index in _blocks(reference.shape):
        r, c = reference.read(index), candidate.read(index)
        finite_r, finite_c = np.isfinite(r), np.isfinite(c)
        both = finite_r & finite_c
        bad = ~both & ~((r == c) | (np.isnan(r) & np.isnan(c)))
        if not found.misplaced and bad.any():
            found.first_misplaced = _at(index, int(np.argmax(bad)), bad.shape)
        found.misplaced += int(bad.sum())
        found.compared += int(both.sum())
        found.nonfinite_reference += int((~finite_r).sum())
        found.nonfinite_candidate += int((~finite_c).sum())
        if both.any():
            found.lowest = min(found.lowest, float(c[both].min()))
            found.highest = max(found.highest, float(c[both].max()))
        magnitudes: Floats = np.abs(r[finite_r & (r != 0)])
        octaves = np.frexp(magnitudes)[1] + 1100
        found.octaves += np.bincount(octaves, minlength=2200)
    return found


@dataclass
class _Axis:
    """Sums over the slices along one dimension; slices thinner than _GROUP elements share an entry."""

    axis: int
    size: int
    per_group: int
    reference: Floats
    difference: Floats
    count: Floats

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int) -> _Axis:
        thickness = math.prod(shape) // shape[axis]
        per_group = -(-_GROUP // thickness)
        groups = max(1, shape[axis] // per_group)
        return cls(axis, shape[axis], per_group, np.zeros(groups), np.zeros(groups), np.zeros(groups))

    def groups(self, index: Index) -> npt.NDArray[np.intp]:
        start, stop = int(index[self.axis].start), int(index[self.axis].stop)
        return np.minimum(np.arange(start, stop) // self.per_group, len(self.count) - 1)

    def add(self, index: Index, reference: Floats, difference: Floats, counted: npt.NDArray[np.bool_]) -> None:
        others = tuple(axis for axis in range(reference.ndim) if axis != self.axis)
        groups = self.groups(index)
        for total, values in ((self.reference, reference), (self.difference, difference), (self.count, counted)):
            total += np.bincount(groups, values.sum(axis=others), len(total))

    def worst(self, allowed: Floats, found: Floats, share: Floats) -> SliceFigure:
        excess = _ratio(found, allowed)
        group = int(np.argmax(excess))
        last = group == len(excess) - 1
        stop = self.size if last else (group + 1) * self.per_group
        return SliceFigure(self.axis, group * self.per_group, stop, float(share[group]), float(excess[group]))


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, where 0 / 0 is 0 and anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(above == 0, 0.0, above / below)


def _rms(squares: Floats, count: Floats) -> Floats:
    return np.sqrt(squares / np.maximum(count, 1))


@dataclass
class _Sums:
    """The second pass: sums of squares and products, scaled."""

    axes: list[_Axis]
    rr: float = 0.0
    cc: float = 0.0
    rc: float = 0.0
    dd: float = 0.0
    count: int = 0
    rr_with_masks: float = 0.0
    wrong: int = 0
    steps: int = 0
    step_rr: float = 0.0
    step_cc: float = 0.0
    step_rc: float = 0.0


def _add_up(reference: _Operand, candidate: _Operand, scale: float, ceiling: float) -> _Sums:
    shape = reference.shape
    sums = _Sums([_Axis.of(shape, axis) for axis in range(len(reference.value.shape))])
    along = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    for index in _blocks(shape):
        # Steps along a dimension need one row more than the block has.
        longer = slice(index[along].start, min(index[along].stop + 1, shape[along]))
        wide = (*index[:along], longer, *index[along + 1 :])
        r_wide, c_wide = reference.read(wide) * scale, candidate.read(wide) * scale
        finite = np.isfinite(r_wide) & np.isfinite(c_wide)
        rows = tuple(slice(0, part.stop - part.start) for part in index)
        sums.rr_with_masks += float(np.square(r_wide[rows][finite[rows]]).sum())
        counted = finite & (np.abs(np.where(finite, r_wide, 0.0)) < ceiling)
        r_wide, c_wide = np.where(counted, r_wide, 0.0), np.where(counted, c_wide, 0.0)
        step_r, step_c = np.diff(r_wide, axis=along), np.diff(c_wide, axis=along)
        sums.steps += step_r.size
        sums.step_rr += float(np.square(step_r).sum())
        sums.step_cc += float(np.square(step_c).sum())
        sums.step_rc += float((step_r * step_c).sum())
        r, c, counted = r_wide[rows], c_wide[rows], counted[rows]
        rr = np.square(r)
        sums.cc += float(np.square(c).sum())
        sums.rc += float((r * c).sum())
        sums.count += int(counted.sum())
        sums.rr += float(rr.sum())
        dd = np.square(c - r)
        sums.dd += float(dd.sum())
        if reference.kind == "exact":
            dd = np.asarray(reference.raw(index)) != np.asarray(candidate.raw(index))
            sums.wrong += int(dd.sum())
        for axis in sums.axes:
            axis.add(index, rr, dd, counted)
    return sums


def _worst_slice(sums: _Sums, tolerance: Tolerance, floor: float, exact: bool) -> SliceFigure | None:
    size = math.sqrt(sums.rr / sums.count) if sums.count else 0.0
    noise = max(_NOISE * tolerance.rel_l2 * size, floor)
    found: list[SliceFigure] = []
    for axis in sums.axes:
        if len(axis.count) < 2:
            continue
        if exact:
            share = _ratio(axis.difference, axis.count)
            found.append(axis.worst(np.full_like(share, 0.5), share, share))
        else:
            reference, difference = _rms(axis.reference, axis.count), _rms(axis.difference, axis.count)
            allowed = tolerance.max_rel * reference + noise
            found.append(axis.worst(allowed, difference, _ratio(difference, reference)))
    return max(found, key=lambda figure: figure.excess, default=None)


def _worst_element(
    reference: _Operand, candidate: _Operand, scale: float, rows: _Axis, floor: float, max_rel: float
) -> tuple[float, float, tuple[int, ...]]:
    """The third pass: (largest scaled difference, largest difference in units of element plus row, its index)."""
    row_rms = _rms(rows.reference, rows.count)
    largest, worst, where = 0.0, -1.0, (0,) * len(reference.shape)
    for index in _blocks(reference.shape):
        r, c = reference.read(index) * scale, candidate.read(index) * scale
        finite = np.isfinite(r) & np.isfinite(c)
        r, c = np.where(finite, r, 0.0), np.where(finite, c, 0.0)
        difference = np.abs(c - r)
        if reference.kind == "exact":
            # Above 2**53 neighbours are one float64; they still differ by 1 at least.
            wrong = np.asarray(reference.raw(index)) != np.asarray(candidate.raw(index))
            difference = np.where(wrong, np.maximum(difference, scale), 0.0)
        unit = np.abs(r) + np.expand_dims(row_rms[rows.groups(index)], tuple(range(1, r.ndim)))
        ratio = _ratio(difference, unit)
        ratio = np.where(difference <= floor, np.minimum(ratio, max_rel), ratio)
        largest = max(largest, float(difference.max()))
        highest = float(ratio.max())
        if highest > worst:
            worst, where = highest, _at(index, int(np.argmax(ratio)), ratio.shape)
    return largest, worst, where


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
    sums = _add_up(reference, candidate, scale, survey.ceiling())
    size = math.sqrt(sums.rr_with_masks / max(survey.compared, 1))
    floor = min(tolerance.abs * scale, tolerance.rel_l2 * size) if size else tolerance.abs * scale
    largest, worst, where = _worst_element(reference, candidate, scale, sums.axes[0], floor, tolerance.max_rel)
    rel_l2 = _quotient(math.sqrt(sums.dd), math.sqrt(sums.rr))
    if math.sqrt(sums.dd / max(sums.count, 1)) <= floor:
        rel_l2 = min(rel_l2, tolerance.rel_l2)
    norms = math.sqrt(sums.rr) * math.sqrt(sums.cc)
    figures = Figures(
        max_abs=largest / scale,
        max_rel=worst,
        rel_l2=rel_l2,
        cosine=sums.rc / norms if norms else float(sums.rr == sums.cc),
        mismatch=sums.wrong / math.prod(reference.shape),
        worst_index=where[:rank],
        nonfinite_reference=survey.nonfinite_reference,
        nonfinite_candidate=survey.nonfinite_candidate,
        misplaced=survey.misplaced,
        compared=survey.compared,
        zeros=survey.lowest == survey.highest == 0,
        constant=survey.lowest == survey.highest,
        gain=_quotient(math.sqrt(sums.cc), math.sqrt(sums.rr)),
        worst_slice=_worst_slice(sums, tolerance, floor, reference.kind == "exact"),
        following=_following(sums, tolerance, floor),
    )
    if survey.misplaced:
        figures = replace(figures, worst_index=survey.first_misplaced[:rank])
    if not survey.compared:
        figures = replace(figures, **dict.fromkeys(("max_abs", "max_rel", "rel_l2", "cosine", "gain"), math.nan))
    return figures


def _quotient(above: float, below: float) -> float:
    return float(_ratio(np.array([above]), np.array([below]))[0])


def _following(sums: _Sums, tolerance: Tolerance, floor: float) -> float | None:
    """Correlation of the steps, where the reference's own steps stand out of the noise."""
    visible = max(_NOISE * tolerance.rel_l2 * math.sqrt(sums.rr), floor * math.sqrt(sums.count))
    if sums.steps < _GROUP or math.sqrt(sums.step_rr) <= visible:
        return None
    norms = math.sqrt(sums.step_rr) * math.sqrt(sums.step_cc)
    return sums.step_rc / norms if norms else 0.0
