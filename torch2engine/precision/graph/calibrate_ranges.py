"""A model + calibration batches → the range of each tensor that an 8-bit type should cover.

Enters: a model, names of its tensors, batches. Leaves: a threshold for each tensor, or why there is none. Separate from
the writing of Q/DQ nodes because it alone runs the model.

The histograms are not ONNX Runtime's (1.32). Those grow by as many bins as a later batch is larger (1e6 after 1e-6:
until memory ends), and fail where a range is too small for its bins ("Too many bins for data range", which ends
ModelOpt 0.47's entropy too). These always have `_BINS` bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import QUANTIZED_PRECISIONS
from torch2engine.onnx_graph.model_file import save_model
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.precision.graph.tensor_maxima import OBSERVED_PREFIX, answers_in_turn, observe_tensors

__all__ = ["SMALLEST", "Range", "RangeRule", "calibrate_ranges"]

_BINS = 8192
# Entropy compares shapes. With fewer values for each bin, entropy is mostly noise and clips far too much. A trained
# ResNet with 6 values in a bin has a relative error of 0.31, but 0.010 by the largest value.
_ENTROPY_BINS = 2048
_VALUES_PER_BIN = 50
# Below this, float32 can hardly hold the scale, and a tensor counts as zero.
SMALLEST = 1e-30


@dataclass(frozen=True)
class RangeRule:
    """How the range of a tensor follows from its values.

    Args:
        method, percentile: as in `Precision`.
        levels: the absolute values of the type; a candidate range is rounded to them when its entropy is measured.
    """

    method: str
    percentile: float
    levels: int


@dataclass(frozen=True)
class Range:
    """The calibrated range of one tensor.

    Args:
        threshold: the largest absolute value to be represented; 0 if none can be.
        problem: why there is none, as a clause, or "".
        by_max: whether the largest value was taken, because the requested method found no range.
    """

    threshold: float
    problem: str = ""
    by_max: bool = False


def calibrate_ranges(
    model: Any, names: Sequence[str], batches: Iterable[Mapping[str, NDArray[Any]]], rule: RangeRule
) -> dict[str, Range]:
    """Run the model on every batch, one after the other, and find the range of each tensor.

    Memory holds one batch, the tensors that it makes, and a histogram for each.

    Args:
        model: onnx.ModelProto in float32; its outputs are changed.
        names: tensors of the graph.
        batches: arrays by input name; read once; each may be of another size.
        rule: how a range follows from the values.

    Raises:
        InputError: no batch, or ONNX Runtime fails on one.
    """
    histograms = {name: _Histogram() for name in names}
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        observe_tensors(model, names, reduced=rule.method == "max")
        save_model(model, path)
        session = OrtSession(path, as_it_is=True)
        is_empty = True
        for answers in answers_in_turn(session, batches):
            is_empty = False
            for name in names:
                histograms[name].add(answers.pop(OBSERVED_PREFIX + name))
    if is_empty:
        raise InputError(
            "calibration",
            got="no batch",
            allowed=f"calibration data for {' and '.join(QUANTIZED_PRECISIONS)}, an iterable of inputs in the form of "
            "sample_input",
            fix="pass e.g. calibration=[batch for batch in loader][:32]",
        )
    return {name: histogram.range(rule) for name, histogram in histograms.items()}


class _Histogram:
    """Absolute values of one tensor in bins over 0..top; where a value is larger, top doubles and bins merge."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._top = 0.0
        self._largest = 0.0
        self._is_finite = True
        self._is_empty = True

    def add(self, values: NDArray[Any]) -> None:
        """Count these values."""
        if not values.size:
            return
        sizes = np.abs(values, dtype=np.float64).ravel()
        largest = float(sizes.max())
        self._is_empty = False
        if not math.isfinite(largest):
            self._is_finite = False
            return
        self._largest = max(self._largest, largest)
        if self._top == 0.0:
            if largest <= SMALLEST:
                self._counts[0] += sizes.size
                return
            self._top = largest
        while largest > self._top:
            merged = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.concatenate([merged, np.zeros_like(merged)])
            self._top *= 2
        bins = np.minimum((sizes * (_BINS / self._top)).astype(np.int64), _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)

    def range(self, rule: RangeRule) -> Range:
        """Choose the range."""
        if not self._is_finite:
            return Range(0.0, "is NaN or infinite on the calibration data")
        if self._is_empty:
            return Range(0.0, "is empty on all of the calibration data")
        if self._largest <= SMALLEST:
            return Range(0.0, "is zero on all of the calibration data")
        if rule.method == "max":
            return Range(self._largest)
        threshold = self._percentile(rule.percentile) if rule.method == "percentile" else self._entropy(rule.levels)
        return Range(self._largest, by_max=True) if threshold is None else Range(min(threshold, self._largest))

    def _percentile(self, percentile: float) -> float | None:
        if percentile >= 100:
            return self._largest
        share = np.cumsum(self._counts) / self._counts.sum()
        index = int(np.searchsorted(share, percentile / 100))
        # The first bin contains zero: a range of that bin alone would clip everything else.
        return (index + 1) * self._top / _BINS if index else None

    def _entropy(self, levels: int) -> float | None:
        """Find where clipping and rounding to so many levels lose the least information.

        The loss is the Kullback-Leibler divergence.
        """
        used = math.ceil(self._largest / self._top * _BINS)
        filled = int(self._counts[1:].sum()) // _VALUES_PER_BIN
        factor = math.ceil(used / max(1, min(_ENTROPY_BINS, filled)))
        padded = np.zeros(factor * math.ceil(used / factor), np.int64)
        padded[:used] = self._counts[:used]
        counts = padded.reshape(-1, factor).sum(1).astype(np.float64)
        if np.count_nonzero(counts) < levels:
            return None
        counts[0] = counts[1]  # zeros cost nothing at any scale, but after a ReLU they would outweigh all other values
        losses = {end: _divergence(counts, end, levels) for end in [*range(levels, counts.size, 8), counts.size]}
        best_end = min(losses, key=losses.__getitem__)
        return best_end * factor * self._top / _BINS if math.isfinite(losses[best_end]) else None


def _divergence(counts: NDArray[np.float64], end: int, levels: int) -> float:
    """Compute how much is lost if only the first `end` bins are represented, by so many levels."""
    inside = counts[:end]
    clipped = np.append(inside[:-1], counts[end - 1 :].sum())
    level = np.arange(end) * levels // end
    mass = np.bincount(level, inside, levels)
    occupied_bins = np.bincount(level, clipped > 0, levels)
    is_occupied = clipped > 0
    coarse: Any = (mass / np.maximum(occupied_bins, 1))[level][is_occupied]
    total = coarse.sum()
    if total == 0:
        return math.inf
    fine = clipped[is_occupied] / clipped.sum()
    return float((fine * np.log(fine / np.maximum(coarse / total, 1e-12))).sum())
