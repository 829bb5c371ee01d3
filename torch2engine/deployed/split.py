"""A call that is too large, cut along one axis: the chunks, the proof that chunks are right, and the joined answer.

Enters: sizes outside every profile, and a runner for sizes inside one. Leaves: the answer of the whole call. Separate
from `out_of_range` because this is arithmetic on shapes, without a policy or a state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from torch2engine.core.config import Tolerances
from torch2engine.core.errors import ShapeError
from torch2engine.core.spec import Profile, Signature, TensorSpec
from torch2engine.deployed.backend import Infer
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = [
    "Cut",
    "InRangeRunner",
    "Places",
    "Unsplittable",
    "choose_cut",
    "compare_in_chunks",
    "halves",
    "independent_places",
    "split",
]


class Unsplittable(Exception):
    """A call can't be split, for this reason. The caller knows the call, and turns this into a typed error."""


@dataclass(frozen=True)
class InRangeRunner:
    """The deployed module as the out-of-range policy sees it: it answers calls inside the profiles.

    Args:
        influences: {axis: the operator that lets its entries influence each other, None where none does}.
        title: the name of the runtime, e.g. "ONNX Runtime".
        infer: the flat call; under output="static" its results are valid until its next call.
    """

    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str
    influences: Mapping[str, str | None]
    title: str
    infer: Infer


@dataclass(frozen=True)
class Places:
    """The dimension of an axis in every input and in every output; None for an input without this axis."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """How a call is answered in chunks.

    Args:
        axis: the axis that is cut.
        places: where it is.
        chunks: sizes in order; all lie in one profile.
        proof: two sizes that add up to a size of that profile.
    """

    axis: str
    places: Places
    chunks: tuple[int, ...]
    proof: tuple[int, int]


def choose_cut(runner: InRangeRunner, sizes: Mapping[str, int]) -> Cut:
    """Choose the axis and the chunks.

    Raises:
        Unsplittable: no axis can be cut so that every chunk lies in a profile.
    """
    signature = runner.signature
    profiles = runner.profiles
    fitting = [
        (axis.name, profile)
        for axis in signature.axes
        for profile in sorted(profiles, key=lambda profile: -profile.ranges[axis.name][2])
        if sizes[axis.name] > profile.ranges[axis.name][2]
        and profile.contains({**sizes, axis.name: profile.ranges[axis.name][2]})
    ]
    if not fitting:
        raise Unsplittable(_why_none(profiles, sizes))
    reasons: list[Unsplittable] = []
    for name, profile in fitting:
        low, _, high = profile.ranges[name]
        step = signature.axis(name).multiple_of
        try:
            where = independent_places(runner, name)
            return Cut(name, where, _chunks(sizes[name], low, high, step), halves(high, low, step))
        except Unsplittable as reason:
            reasons.append(reason)
    raise reasons[0]


def _why_none(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> str:
    def outside(name: str) -> bool:
        return not any(profile.ranges[name][0] <= sizes[name] <= profile.ranges[name][2] for profile in profiles)

    names = [name for name in sizes if outside(name)]
    small = [name for name in names if all(sizes[name] < profile.ranges[name][0] for profile in profiles)]
    if small:
        return f"axis '{small[0]}' is too small, and only a larger one can be split"
    if len(names) > 1:
        return f"axes {' and '.join(map(repr, names))} are both outside, and only one can be split"
    return "no profile that could answer chunks holds the other axes"


def independent_places(runner: InRangeRunner, axis: str) -> Places:
    """Find the axis's dimension in every tensor, if its entries don't influence each other.

    Raises:
        Unsplittable: an output has it not just once, or an input more than once; or an operator may mix its entries.
    """
    found = places(runner.signature, axis)
    if axis not in runner.influences:
        raise Unsplittable(
            "its ONNX graph was not analysed for operators that let entries influence each other; "
            "deploy or build the model again"
        )
    if (influence := runner.influences[axis]) is not None:
        raise Unsplittable(f"its entries may influence each other: {influence}")
    return found


def places(signature: Signature, axis: str) -> Places:
    """Find the axis's dimension in every tensor.

    Raises:
        Unsplittable: an output has it not just once, or an input more than once.
    """
    inputs = [_dims(spec, axis) for spec in signature.inputs]
    for spec, dims in zip(signature.inputs, inputs, strict=True):
        if len(dims) > 1:
            raise Unsplittable(f"axis '{axis}' is more than one dimension of input '{spec}'")
        if dims and spec.shape[dims[0]] != axis:
            raise Unsplittable(f"another size of input '{spec}' follows from axis '{axis}'")
    outputs = [_dims(spec, axis) for spec in signature.outputs]
    for spec, dims in zip(signature.outputs, outputs, strict=True):
        if len(dims) != 1 or spec.shape[dims[0]] != axis:
            raise Unsplittable(f"axis '{axis}' is not just one dimension of output '{spec}'")
    return Places(tuple(dims[0] if dims else None for dims in inputs), tuple(dims[0] for dims in outputs))


def _dims(spec: TensorSpec, axis: str) -> list[int]:
    """The dimensions that are the axis or follow from it."""
    return [place for place, dim in enumerate(spec.shape) if isinstance(dim, str) and axis in re.findall(r"\w+", dim)]


def _chunks(size: int, low: int, high: int, step: int) -> tuple[int, ...]:
    """The fewest chunks of sizes from low to high, as even as possible: at most two sizes, larger ones first."""
    units = size // step
    most = high // step
    count = math.ceil(units / most)
    base, larger = divmod(units, count)
    if base * step < low:
        multiples = f", multiples of {step}" if step > 1 else ""
        raise Unsplittable(f"{size} entries can't be cut into chunks of {low}..{high}{multiples}")
    return tuple((base + (index < larger)) * step for index in range(count))


def halves(whole: int, low: int, step: int) -> tuple[int, int]:
    """Two uneven chunks of a size.

    The chunks are uneven, and the first one is odd where possible. A model that depends on an entry's number, modulo a
    small number, then answers the second chunk differently.

    Raises:
        Unsplittable: the size is no sum of two that are allowed.
    """
    units = whole // step
    least = math.ceil(low / step)
    if units < 2 * least:
        raise Unsplittable(
            f"the range {low}..{whole} is too narrow to prove that entries don't influence each other: "
            "it has no size that is the sum of two"
        )
    first = units // 2 + 1
    first += first % 2 == 0
    first = min(first, units - least)
    return first * step, (units - first) * step


def split(runner: InRangeRunner, cut: Cut, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Answer chunk by chunk; call it under no_grad.

    Returns:
        output name -> fresh tensor.

    Raises:
        ShapeError: outputs of two chunks differ in another dimension.
    """
    answer: dict[str, torch.Tensor] = {}
    start = 0
    for size in cut.chunks:
        part = runner.infer(_slices(leaves, cut.places.inputs, start, size))
        for (name, value), dim in zip(part.items(), cut.places.outputs, strict=True):
            if start == 0:
                shape = (*value.shape[:dim], sum(cut.chunks), *value.shape[dim + 1 :])
                answer[name] = torch.empty(shape, dtype=value.dtype, device=value.device)
            place = answer[name].narrow(dim, start, size)
            if place.shape != value.shape:  # copy_ would broadcast
                raise ShapeError(
                    f"output '{name}'",
                    name=name,
                    got=f"shape {list(value.shape)} for a chunk of {size} entries of axis '{cut.axis}'",
                    allowed=f"{list(place.shape)}, as for the chunks before it",
                    fix="use out_of_range='eager'",
                )
            place.copy_(value)
        start += size
    return answer


def _slices(leaves: Sequence[torch.Tensor], dims: Sequence[int | None], start: int, size: int) -> list[torch.Tensor]:
    return [leaf if dim is None else leaf.narrow(dim, start, size) for leaf, dim in zip(leaves, dims, strict=True)]


def _require_finite(row: OutputParity) -> OutputParity:
    """Let a comparison fail if no element was finite: equal NaN proves nothing about an axis."""
    if row.passed and 0 < math.prod(row.shape) == row.nonfinite_reference:
        return replace(row, passed=False, reason="the reference has no finite element, so nothing was compared")
    return row


def compare_in_chunks(
    runner: InRangeRunner, cut: Cut, leaves: Sequence[torch.Tensor], tolerance: Tolerances | None = None
) -> tuple[ParityReport, bool]:
    """Compare the answers to some of the call's entries as a whole with the answers to the same entries in two chunks.

    It compares twice, in the call's order and in the opposite one, since an influence from entry to entry may have one
    direction.

    Args:
        leaves: the call's inputs, with at least `sum(cut.proof)` entries.
        tolerance: by default that of the precision.

    Returns:
        the report, and whether entries differ, so that an influence could show at all.
    """
    bounds = Bounds.of(tolerance, runner.precision)
    first, second = cut.proof
    whole = first + second
    report = ParityReport(
        (), f"{whole} entries of axis '{cut.axis}' whole vs in chunks, {runner.title}", bounds.tolerance
    )
    differ = False
    for order in (1, -1):
        rows = list(_spread(leaves, cut.places.inputs, whole, order))
        differ = differ or any(
            bool((row != row.narrow(dim, 0, 1)).any())
            for row, dim in zip(rows, cut.places.inputs, strict=True)
            if dim is not None
        )
        expected = runner.infer(rows)
        for start, size in ((0, first), (first, second)):
            found = runner.infer(_slices(rows, cut.places.inputs, start, size))
            part = {
                name: value[(slice(None),) * dim + (slice(start, start + size),)]
                for (name, value), dim in zip(expected.items(), cut.places.outputs, strict=True)
            }
            case = f"{start}..{start + size - 1}" + (" reversed" if order < 0 else "")
            report = report.add(map(_require_finite, compare(part, found, bounds, case=case)))
    return report, differ


def _spread(
    leaves: Sequence[torch.Tensor], dims: Sequence[int | None], count: int, order: int
) -> Iterator[torch.Tensor]:
    """A number of entries, spread over the axis, forwards (1) or backwards (-1)."""
    for leaf, dim in zip(leaves, dims, strict=True):
        if dim is None:
            yield leaf
        else:
            index = torch.arange(count, device=leaf.device) * leaf.shape[dim] // count
            yield leaf.index_select(dim, index if order > 0 else index.flip(0))
