"""Outputs and what may be wrong with them, for the tests of the judge.

Enters: nothing. Leaves: arrays, and faults with the reason that the judge must give. A room of its own because two
files of tests share the arrays, and the faults are a table to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.hidden_parts import hidden_parts
from torch2engine.core.config import Tolerance
from torch2engine.core.precisions import MODEL_PRECISIONS, PRECISION_TYPES
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

FP32 = Tolerance.default("fp32")
Outputs = dict[str, Any]


def outputs() -> Outputs:
    """What a detector might return: floats, integers, a square matrix and something small."""
    rng = np.random.default_rng(7)
    start = rng.standard_normal((32, 40)).astype(np.float32)
    return {
        "start": start,
        "end": rng.standard_normal((32, 40)).astype(np.float32),
        "square": rng.standard_normal((4, 24, 24)).astype(np.float32),
        "labels": rng.integers(0, 90, (32, 40)),
        "keep": rng.random((32, 40)) > 0.5,
        "tiny": (1e-20 * rng.standard_normal((32, 40))).astype(np.float32),
    }


def judge(reference: Outputs, candidate: Outputs, tolerance: Tolerance = FP32) -> ParityReport:
    return ParityReport(compare(reference, candidate, tolerance, case="max"), "PyTorch vs a candidate", tolerance)


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Outputs], Outputs]:
    """A fault in one output; `change` gets a copy of the array."""
    return lambda reference: {**reference, name: change(reference[name].copy())}


def at(index: Any, value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[index] = value(array[index]) if callable(value) else value
        return array

    return change


def without(name: str) -> Callable[[Outputs], Outputs]:
    return lambda reference: {key: value for key, value in reference.items() if key != name}


def garbage(array: Any) -> Any:
    return np.random.default_rng(1).standard_normal(array.shape).astype(array.dtype)


# (name of the fault, the fault, the output that must fail, how its reason starts, how it ends)
FAULTS = [
    ("garbage", put("start", garbage), "start", "relative L2 is 1.4", "is allowed"),
    ("zeros", put("start", np.zeros_like), "start", "relative L2 is 1, at most 0.00025", "(all zeros)"),
    ("one value", put("start", lambda a: np.full_like(a, 2)), "start", "relative L2", "(one value throughout)"),
    ("constant rows", put("start", lambda a: a[:1].repeat(32, 0)), "start", "relative L2", "is allowed"),
    ("sign flipped", put("start", np.negative), "start", "relative L2 is 2,", "(the sign is flipped)"),
    ("scaled", put("start", lambda a: a * 2), "start", "relative L2 is 1,", "(about 2 times the reference)"),
    ("scaled a little", put("start", lambda a: a * 1.001), "start", "relative L2 is 0.001,", "is allowed"),
    ("missing", without("end"), "end", "missing from the candidate", ""),
    ("extra", lambda r: {**r, "more": r["end"]}, "more", "the reference has no such output", ""),
    ("nothing", lambda r: {}, "start", "missing from the candidate", ""),
    ("renamed", lambda r: {**without("end")(r), "End": r["end"]}, "end", "missing from the candidate", ""),
    (
        "swapped",
        lambda r: {**r, "start": r["end"], "end": r["start"]},
        "start",
        "relative L2",
        "(it matches the reference's output 'end')",
    ),
    ("empty", put("start", lambda a: a[:0]), "start", "empty, shape is [0, 40], the reference's is [32, 40]", ""),
    ("a row too few", put("start", lambda a: a[1:]), "start", "shape is [31, 40], the reference's is [32, 40]", ""),
    ("flattened", put("start", np.ravel), "start", "shape is [1280], the reference's is [32, 40]", ""),
    ("one dimension more", put("start", lambda a: a[None]), "start", "shape is [1, 32, 40]", ""),
    ("None", put("start", lambda a: None), "start", "the candidate is a NoneType, neither a tensor nor an array", ""),
    ("a list", put("start", lambda a: a.tolist()), "start", "the candidate is a list, neither", ""),
    ("float64", put("start", lambda a: a.astype(np.float64)), "start", "dtype is float64, the reference's is", ""),
    ("float16", put("start", lambda a: a.astype(np.float16)), "start", "dtype is float16, the reference's is", ""),
    ("int32", put("labels", lambda a: a.astype(np.int32)), "labels", "dtype is int32, the reference's is int64", ""),
    (
        "one NaN",
        put("start", at((3, 4), np.nan)),
        "start",
        "1 elements are NaN or Inf in one only, the first at [3, 4]",
        "",
    ),
    ("all NaN", put("start", lambda a: a * np.nan), "start", "1280 elements are NaN or Inf in one only", ""),
    ("one Inf", put("start", at((3, 4), -np.inf)), "start", "1 elements are NaN or Inf", "at [3, 4]: -inf, expected"),
    (
        "transposed",
        put("square", lambda a: a.swapaxes(1, 2)),
        "square",
        "relative L2",
        "(it matches with the last two dimensions swapped)",
    ),
    ("off by one row", put("start", lambda a: np.roll(a, 1, 0)), "start", "relative L2", "is allowed"),
    ("off by one column", put("start", lambda a: np.roll(a, 1, 1)), "start", "relative L2", "is allowed"),
    ("rows reversed", put("start", lambda a: a[::-1]), "start", "relative L2", "is allowed"),
    ("one row of zeros", put("start", at(5, 0)), "start", "relative L2", "is allowed"),
    ("two rows swapped", put("start", lambda a: a[[1, 0, *range(2, 32)]]), "start", "relative L2", "is allowed"),
    ("one element", put("start", at((3, 4), lambda v: v + 0.003)), "start", "element [3, 4] is", "0.001 is allowed"),
    ("tiny zeros", put("tiny", np.zeros_like), "tiny", "relative L2 is 1,", "(all zeros)"),
    ("tiny garbage", put("tiny", lambda a: a[::-1]), "tiny", "relative L2 is 1.4", "is allowed"),
    ("one label", put("labels", at((3, 4), lambda v: v + 1)), "labels", "0.000781 of the elements differ", "expected"),
    ("inverted mask", put("keep", np.logical_not), "keep", "1 of the elements differ, at most 0 may", "expected 0"),
]


def large(scale: Any = 1.0) -> Any:
    return (scale * np.random.default_rng(3).standard_normal((200, 5000))).astype(np.float32)


def with_masks(value: float) -> Any:
    array = np.random.default_rng(4).standard_normal((16, 64)).astype(np.float32)
    array[:, 40:] = value
    return array


def boxes_and_scores() -> Any:
    rng = np.random.default_rng(5)
    return np.concatenate([640 * rng.random((2, 300, 4)), rng.random((2, 300, 8))], -1).astype(np.float32)


def offset() -> Any:
    return (100 + 0.0125 * np.random.default_rng(6).standard_normal((64, 40))).astype(np.float32)


def backgrounds() -> Any:
    labels = np.zeros(20_000, np.int64)
    np.put(labels, np.arange(0, 20_000, 133), 7)
    return labels.reshape(50, 400)


HIDDEN = [
    ("one of a million", large(), at((77, 7), lambda v: v + 0.02), FP32, "element [77, 7] is"),
    ("a small row beside large ones", large(np.logspace(0, 8, 200)[:, None]), at(0, 0), FP32, "element [0,"),
    (
        "a row of ones lost",
        np.ones((2000, 16), np.float32),
        at(9, 0),
        Tolerance(rel_l2=0.05, max_rel=0.5),
        "slice [9] is off by 1 of its size, 1.96 times what is allowed",
    ),
    (
        "garbage beside mask values",
        with_masks(-1e9),
        lambda a: np.where(a < -1e8, a, garbage(a)),
        FP32,
        "relative L2 is 1",
    ),
    (
        "mask values lost",
        with_masks(-1e9),
        lambda a: np.where(a < -1e8, -1e4, a).astype(np.float32),
        FP32,
        "is -10000, expected -1e+09: relative to itself and its surroundings off by 1,",
    ),
    ("mask of another kind", with_masks(-np.inf), lambda a: np.nan_to_num(a), FP32, "384 elements are NaN or Inf"),
    (
        "NaN for Inf",
        with_masks(-np.inf),
        at((0, 41), np.nan),
        FP32,
        "1 elements are NaN or Inf in one only, the first at [0, 41]",
    ),
    (
        "Inf for NaN",
        with_masks(np.nan),
        at((0, 41), np.inf),
        FP32,
        "1 elements are NaN or Inf in one only, the first at [0, 41]: inf, expected nan",
    ),
    ("Inf of the other sign", with_masks(-np.inf), at((0, 41), np.inf), FP32, "1 elements are NaN or Inf in one only"),
    (
        "scores beside boxes, fp16",
        boxes_and_scores(),
        at((..., slice(6, 7)), 0.0),
        Tolerance.default("fp16"),
        "slice [:, :, 6]",
    ),
    (
        "constant under a large offset",
        offset(),
        lambda a: np.full_like(a, a.mean()),
        FP32,
        "does not follow the reference",
    ),
    (
        "stale under a large offset",
        offset(),
        lambda a: np.roll(a, 1, 0),
        FP32,
        "does not follow the reference from row to row",
    ),
    ("zeros expected", np.zeros((4, 40), np.float32), at((1, 2), 1e-3), FP32, "relative L2 is inf"),
    (
        "labels: a row lost",
        large() > 0,
        at(3, np.logical_not),
        Tolerance(mismatch=0.1),
        "1 of the elements in slice [3] differ",
    ),
    (
        "labels: background only",
        backgrounds(),
        np.zeros_like,
        Tolerance(mismatch=0.01),
        "1 of the elements that are 7 in",
    ),
    (
        "huge integers",
        np.full((4,), 2**60),
        at(2, 2**60 + 1),
        FP32,
        "0.25 of the elements differ, at most 0 may; e.g. at [2]",
    ),
    ("imaginary part", np.exp(1j * large()[:2]).astype(np.complex64), np.conj, FP32, "relative L2 is 1."),
    ("overflow", np.ones((4, 40)), at((0, 0), 1e300), FP32, "relative L2 is inf"),
    ("scalar", np.array(2.0, np.float32), at((), 2.1), FP32, "relative L2 is 0.05"),
    ("small and short", np.ones((3, 1), np.float32), at((1, 0), 1.01), FP32, "relative L2 is 0.005"),
]


# Relative L2 errors that the sensitivity allows: none besides the tolerance's, some, and as much as still means much.
ALLOWED = (0.0, 2.5e-3, 4.9e-2)


@dataclass(frozen=True)
class PlantedFault:
    """A wrong answer, ready to be judged.

    Args:
        name: of the fault.
        reference, candidate: the right outputs, and the wrong ones.
        bounds: what is allowed.
        sensitivity: how far rounding alone moves the reference.
    """

    name: str
    reference: Outputs
    candidate: Outputs
    bounds: Bounds
    sensitivity: Outputs

    def rows(self) -> tuple[OutputParity, ...]:
        """The judge's verdicts."""
        return compare(self.reference, self.candidate, self.bounds, sensitivity=self.sensitivity)

    def passes(self) -> bool:
        """Whether the judge overlooks it."""
        return all(row.passed for row in self.rows())


def planted_faults(allowed: float, runtime: str = "tensorrt_rtx") -> list[PlantedFault]:
    """Every fault in a model whose sensitivity allows some relative L2 error; small faults grow with it.

    Args:
        allowed: one of `ALLOWED`; for 0 the model is as stable as a single operator.
        runtime: whose factor counts.
    """
    found: list[PlantedFault] = []
    for name, fault, *_ in FAULTS:
        bounds = Bounds.of(None, "fp32", runtime)
        found.append(_planted(name, outputs(), fault, bounds, _sensitivity(allowed, bounds, "fp32"), allowed))
    for name, reference, fault, tolerance, _ in HIDDEN:
        precision = next((word for word in MODEL_PRECISIONS if Tolerance.default(word) == tolerance), "")
        bounds = Bounds.of(None if precision else tolerance, precision or "fp32", runtime)
        sensitivity = _sensitivity(allowed, bounds, precision or "fp32")
        found.append(_planted(name, {"y": reference}, put("y", fault), bounds, sensitivity, allowed))
    for part in hidden_parts():
        bounds = Bounds.of(None, "fp16", runtime)
        moved = {"y": part.movements(_sensitivity(allowed, bounds, "fp16"))}
        found.append(PlantedFault(part.name, {"y": part.values}, {"y": part.candidate()}, bounds, moved))
    return found


def _sensitivity(allowed: float, bounds: Bounds, precision: str) -> float:
    return max(allowed / (bounds.factor or 1.0), PRECISION_TYPES[precision].rounding)


def _planted(
    name: str,
    reference: Outputs,
    fault: Callable[[Outputs], Outputs],
    bounds: Bounds,
    sensitivity: float,
    allowed: float,
) -> PlantedFault:
    growth = max(1.0, allowed / bounds.rel_l2) if bounds.factor else 1.0
    candidate = {key: _grown(reference.get(key), value, growth) for key, value in fault(reference).items()}
    return PlantedFault(name, reference, candidate, bounds, movements(reference, sensitivity))


def movements(reference: Outputs, sensitivity: float) -> Outputs:
    """How far rounding might move each element: in proportion to what varies in an output."""
    rng = np.random.default_rng(11)
    found: Outputs = {}
    for name, value in reference.items():
        if np.issubdtype(value.dtype, np.floating):
            finite = np.where(np.isfinite(value), value, 0.0).astype(np.float64)
            spread = np.abs(finite - np.median(finite))
            found[name] = sensitivity * spread * np.abs(rng.standard_normal(value.shape))
    return found


def _grown(reference: Any, candidate: Any, growth: float) -> Any:
    """The candidate with a difference so many times as large, if it is small beside the whole."""
    is_array = isinstance(candidate, np.ndarray) and isinstance(reference, np.ndarray)
    if not is_array or candidate.shape != reference.shape or candidate.dtype != reference.dtype:
        return candidate
    if not np.issubdtype(reference.dtype, np.floating) or not np.isfinite(candidate).all():
        return candidate
    finite = np.isfinite(reference)
    exact = np.where(finite, reference, 0).astype(np.float64)
    difference = np.where(finite, candidate, 0) - exact
    if np.abs(difference).max() > 1e30 or np.linalg.norm(difference) > 0.1 * np.linalg.norm(exact):
        return candidate
    return np.where(finite, exact + growth * difference, candidate).astype(reference.dtype)
