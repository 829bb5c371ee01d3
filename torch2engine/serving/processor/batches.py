"""Samples → batches that a profile allows: how many samples are in each, and how many copies fill up the last one.

Enters: a signature, profiles, samples one by one. Leaves: batches, and how many results of each count. Separate because
nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2engine.core.errors import InputError, ShapeError
from torch2engine.core.spec import Profile, Signature
from torch2engine.serving.processor.arrays import Array, match_arguments, require_dtype

__all__ = ["Batches", "group_samples", "plan_batches", "stack_samples"]


@dataclass(frozen=True)
class Batches:
    """The batch sizes that the profiles allow.

    Args:
        ranges: (least, most) of every profile.
        multiple_of: what every size is a multiple of.
        size: how many samples go together while there are enough.
    """

    ranges: tuple[tuple[int, int], ...]
    multiple_of: int
    size: int

    def padded_size(self, count: int) -> int:
        """The smallest batch that holds so many samples, of which there are at most `size`."""
        step = self.multiple_of
        sizes = [-(-max(low, count) // step) * step for low, _ in self.ranges]
        return min(size for size, (_, high) in zip(sizes, self.ranges, strict=True) if size <= high)

    def doubling_sizes(self) -> tuple[int, ...]:
        """A few batches that hold any count between them: the smallest, twice as large ones, and the largest."""
        sizes = [self.padded_size(1)]
        while sizes[-1] < self.size:
            sizes.append(self.padded_size(min(2 * sizes[-1], self.size)))
        return tuple(sizes)


def plan_batches(
    signature: Signature,
    profiles: Sequence[Profile],
    batch_size: int,
    subject: str = "map",
    fix: str = "make the batches yourself and pass them to infer_stream",
) -> Batches:
    """Find the batch sizes near a requested one: at most as large, unless even the smallest one is larger.

    Args:
        signature, profiles: the artifact's.
        batch_size: the requested one.
        subject, fix: of the error.

    Raises:
        InputError: dimension 0 is not one axis of every input and output.
    """
    given = signature.call_inputs
    specs = (*given, *signature.outputs)
    first = given[0].shape[0] if given and given[0].shape else None
    for spec in specs:
        if not spec.shape or spec.shape[0] != first:
            raise InputError(
                subject,
                name=spec.name,
                got=f"'{spec}', which does not begin with the batch" + ("" if first is None else f" ({first})"),
                allowed="engines in which dimension 0 of every input and output is one axis",
                fix=fix,
            )
    if isinstance(first, int):
        return Batches(((first, first),), 1, first)
    assert first is not None, "there are inputs, since there is a name"
    ranges = tuple((profile.ranges[first][0], profile.ranges[first][2]) for profile in profiles)
    step = signature.axis(first).multiple_of
    largest = [(low, min(high, batch_size) // step * step) for low, high in ranges]
    below = [size for low, size in largest if size >= low]
    size = max(below) if below else min(-(-low // step) * step for low, _ in ranges)
    return Batches(ranges, step, size)


def stack_samples(signature: Signature, samples: Sequence[Any], first: int, size: int) -> dict[str, Array]:
    """One batch: the samples, and the last one again and again.

    Args:
        signature: the inputs.
        samples: each what a call takes, without dimension 0.
        first: the number of the first one in the data set, for errors.
        size: of the batch.
    """
    columns: list[list[Array]] = [[] for _ in signature.call_inputs]
    for number, sample in enumerate(samples, first):
        for spec, column, leaf in zip(signature.call_inputs, columns, match_arguments(signature, sample), strict=True):
            array = require_dtype(signature, spec, leaf)
            if column and array.shape != column[0].shape:
                raise ShapeError(
                    f"sample {number} of the data set",
                    name=spec.name,
                    got=f"{list(array.shape)} for input '{spec.name}' ({list(column[0].shape)} in sample {first})",
                    allowed="samples of one shape in a batch",
                    fix="sort them by shape, or make the batches yourself and pass them to infer_stream",
                )
            column.append(array)
    filled = [column + [column[-1]] * (size - len(column)) for column in columns]
    return {spec.name: np.stack(column) for spec, column in zip(signature.call_inputs, filled, strict=True)}


def group_samples(dataset: Iterable[Any], size: int) -> Generator[list[Any]]:
    """Samples in groups; if a sample can't be fetched, the samples before it come first, and then its error."""
    group: list[Any] = []
    try:
        for sample in dataset:
            group.append(sample)
            if len(group) == size:
                yield group
                group = []
    except GeneratorExit:
        raise
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group
