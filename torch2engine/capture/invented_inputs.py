"""Invented inputs: the sample at other sizes, and random values like the sample's.

Enters: the sample and the sizes of its axes. Leaves: inputs that are as plausible as the sample alone allows, and
simpler ones for a model that refuses them. Separate because the meaning of integers and masks is a guess, and one file
holds all guesses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from torch2engine.capture.captured_call import CapturedCall, resized

__all__ = ["Guess", "InventedInputs", "inputs_with_guesses", "invented_inputs"]

_LARGEST_PERMUTATION = 1 << 20


@dataclass(frozen=True)
class Guess:
    """One guess about the meaning of integers and masks.

    Args:
        name: for a note; "" for the guess that needs none.
        continues: whether distinct integers stay distinct where an axis grows, as positions do.
        keeps_positive: whether integers without a zero are counts, which stay positive.
        constant: the value of all integers; None for the sample's values, "least" for the least of them.
        mask_is_inverted: whether the more frequent value of a mask is the one that hides entries.
    """

    name: str = ""
    continues: bool = True
    keeps_positive: bool = True
    constant: int | str | None = None
    mask_is_inverted: bool = False


# The likeliest first. The reference decides: the first that it answers, with finite numbers, becomes the case.
_GUESSES = (
    Guess(),
    Guess(continues=False, keeps_positive=False, mask_is_inverted=True),
    Guess(continues=False),
    Guess("all are the sample's least one", constant="least"),
    Guess("all are 0", constant=0),
)


@dataclass(frozen=True)
class InventedInputs:
    """Inputs for one case, and the guess behind them."""

    leaves: tuple[torch.Tensor, ...]
    guess: Guess


def invented_inputs(
    captured: CapturedCall, sizes: Mapping[str, int], is_random: bool, generator: torch.Generator
) -> Iterator[InventedInputs]:
    """Yield inputs of these sizes, the most plausible ones first.

    Args:
        captured: the call, with its sample.
        sizes: of every dynamic axis.
        is_random: True for random values like the sample's, False for the sample's own.
        generator: of random values; it draws floats once, so that all inputs differ in integers and masks alone.
    """
    sample_sizes = captured.sample_sizes()
    bounds = [_Bounds.of(leaf, captured, sample_sizes, sizes) for leaf in captured.sample]
    shapes = [spec.sized(sizes) for spec in captured.signature.inputs]
    floats = [
        _invented_floats(leaf, shape, spec.preprocess is not None, is_random, generator) if spec.live is None else leaf
        for leaf, shape, spec in zip(captured.sample, shapes, captured.signature.inputs, strict=True)
    ]
    seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
    tried: list[tuple[torch.Tensor, ...]] = []
    choices = [(guess, False) for guess in _GUESSES]
    if is_random:
        choices.insert(0, (_GUESSES[0], True))
    for guess, draws in choices:
        integers = torch.Generator().manual_seed(seed)
        leaves = tuple(
            _invented_integers(leaf, shape, bound, guess, integers if draws else None) if made is None else made
            for leaf, shape, bound, made in zip(captured.sample, shapes, bounds, floats, strict=True)
        )
        if not any(all(map(_is_same, leaves, earlier)) for earlier in tried):
            tried.append(leaves)
            yield InventedInputs(leaves, guess)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or torch.equal(one, other)


def inputs_with_guesses(captured: CapturedCall) -> tuple[str, ...]:
    """The names of the inputs whose meaning is guessed: integers, bools and masks."""
    pairs = zip(captured.signature.inputs, captured.sample, strict=True)
    given = [(spec, leaf) for spec, leaf in pairs if spec.preprocess is None and spec.live is None]
    return tuple(spec.name for spec, leaf in given if not _is_number(leaf))


def _is_number(sample: torch.Tensor) -> bool:
    """Whether an input holds floats that mean a quantity."""
    return sample.is_floating_point() and not _is_mask(sample)


def _is_mask(sample: torch.Tensor) -> bool:
    """Bools, integers of two values, and masks to be added to scores: zero, or so low that softmax forgets it."""
    if sample.dtype == torch.bool:
        return True
    if sample.numel() == 0 or (sample.is_floating_point() and float(sample.min()) >= -1e3):
        return False
    distinct = len(cast("torch.Tensor", sample.unique()))
    return distinct == 2 or (distinct == 1 and not sample.is_floating_point())


def _hides(sample: torch.Tensor) -> bool:
    """Whether an input is a mask in the narrow sense: its values say which entries count."""
    if sample.dtype == torch.bool or sample.is_floating_point():
        return _is_mask(sample)
    return sample.numel() > 0 and int(sample.min()) >= 0 and int(sample.max()) <= 1


# floats and bytes of images follow


def _invented_floats(
    sample: torch.Tensor, shape: Sequence[int], is_image: bool, is_random: bool, generator: torch.Generator
) -> torch.Tensor | None:
    """Values of an image or of quantities; None for integers and masks."""
    if is_image:
        make = _random_image if is_random else _resized_image
        return make(sample, shape, generator)
    if not _is_number(sample):
        return None
    if sample.numel() == 0:
        return resized(sample, shape)
    make = _random_floats if is_random else _resized_with_noise
    return make(sample, shape, generator)


def _random_image(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random bytes over the whole range, even if the sample has few of them."""
    return torch.randint(256, tuple(shape), generator=generator, device="cpu").to(sample.device, sample.dtype)


def _resized_image(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return _resized_with_noise(sample.float(), shape, generator).round().to(sample.dtype)


def _resized_with_noise(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """The sample at another size; repeated floats get noise, so that a comparison sees mixed-up rows."""
    values = resized(sample, shape)
    if values.numel() <= sample.numel() or sample.numel() <= 1:
        return values
    noise = torch.randn(values.shape, generator=generator, device="cpu").to(values.device, values.dtype)
    least = float(sample.min())
    largest = float(sample.max())
    if math.isfinite(least) and math.isfinite(largest):
        return (values + 0.1 * (largest - least) * noise).clamp(least, largest)
    return values


def _random_floats(sample: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Fresh values from the sample's own range: positive stays positive."""
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


# integers and masks


@dataclass(frozen=True)
class _Bounds:
    """The bounds that the sizes of axes set for an integer input.

    Args:
        index: the largest index at the new sizes; None if no axis bounds the input.
        count: the largest count at the new sizes.
        grows: whether an axis that bounds it exactly grows.
        is_strict: whether the bound is smaller than in the sample, so that the sample's own integers may exceed it.
    """

    index: int | None = None
    count: int | None = None
    grows: bool = False
    is_strict: bool = False

    @classmethod
    def of(
        cls, sample: torch.Tensor, captured: CapturedCall, old: Mapping[str, int], new: Mapping[str, int]
    ) -> _Bounds:
        """Find the axes that bound an input: those of the sample's largest value, or any that is not smaller."""
        if _is_number(sample) or _hides(sample) or sample.numel() == 0:
            return cls()
        largest = int(sample.max())
        exact = [name for name, size in old.items() if largest in (size, size - 1)]
        static = {size for spec in captured.signature.inputs for size in spec.shape if isinstance(size, int)}
        is_static = bool(static & {largest, largest + 1})
        bounding = exact or ([] if is_static else [name for name, size in old.items() if largest <= size])
        smaller = [name for name in bounding if new[name] < old[name]]
        grown = [name for name in exact if new[name] > old[name]]
        deciding = smaller or grown
        if not deciding:
            return cls()
        is_count = any(largest == old[name] for name in deciding)
        size = min(new[name] for name in deciding)
        return cls(size - 1, size if is_count else size - 1, bool(grown), bool(smaller))


def _invented_integers(
    sample: torch.Tensor, shape: Sequence[int], bounds: _Bounds, guess: Guess, generator: torch.Generator | None
) -> torch.Tensor:
    """Integers or a mask.

    Args:
        sample: the user's.
        shape: the new one.
        bounds: of integers.
        guess: the meaning of the values.
        generator: for random values; None for the sample's own.
    """
    if _hides(sample):
        values = _resized_mask(sample, shape, guess.mask_is_inverted)
        return values if generator is None else _shuffled_rows(values, generator)
    if sample.numel() == 0:
        return resized(sample, shape)
    if guess.constant is not None:
        value = int(sample.min()) if guess.constant == "least" else int(guess.constant)
        return torch.full(tuple(shape), value, dtype=sample.dtype, device=sample.device)
    values = _without_repeats(_resized_integers(sample, shape, guess, bounds.grows), sample)
    if generator is not None and not _is_consecutive(sample):
        if _is_mask(sample):
            values = _shuffled_rows(values, generator)
        else:
            values = _random_integers(sample, values, bounds, generator)
    return _bounded(values, sample, bounds, guess)


def _resized_integers(sample: torch.Tensor, shape: Sequence[int], guess: Guess, grows: bool) -> torch.Tensor:
    """The sample cut or repeated; repeats of positions continue where the earlier ones end."""
    values = resized(sample, shape)
    if not guess.continues:
        return values
    for dim, size in enumerate(sample.shape):
        if values.shape[dim] > size and _continues(sample, dim, grows):
            step = int(sample.max()) - int(sample.min()) + 1
            blocks = torch.arange(values.shape[dim], device=values.device) // size * step
            values = values + blocks.to(values.dtype).reshape([-1 if d == dim else 1 for d in range(values.ndim)])
    return values


def _without_repeats(values: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Lines that repeat a sample's distinct integers get others of its range, because no place may come twice.

    PyTorch does not define which of two rows a scatter writes to one place.
    """
    least = int(sample.min())
    largest = int(sample.max())
    grows = values.ndim > 0 and values.shape[-1] > sample.shape[-1]
    if not grows or values.shape[-1] > largest - least + 1 or not _is_distinct(sample) or _is_distinct(values):
        return values
    size = sample.shape[-1]
    lines = cast("list[list[int]]", values.reshape(-1, values.shape[-1]).tolist())
    for line in lines:
        used = set(line[:size])
        unused = (value for value in range(least, largest + 1) if value not in used)
        line[size:] = itertools.islice(unused, len(line) - size)
    return torch.tensor(lines, dtype=values.dtype, device=values.device).reshape(values.shape)


def _continues(sample: torch.Tensor, dim: int, grows: bool) -> bool:
    """Whether integers along a dimension are positions, and so go on where it grows."""
    if sample.numel() == 1:
        return dim == sample.ndim - 1  # the dimension may hold positions
    return sample.shape[dim] > 1 and (_is_consecutive(sample, dim) or (grows and _is_distinct(sample, dim)))


def _is_consecutive(sample: torch.Tensor, dim: int = -1) -> bool:
    """Whether each integer is the one before it and 1."""
    return sample.ndim > 0 and sample.shape[dim] > 1 and bool((sample.long().diff(dim=dim) == 1).all())


def _is_distinct(values: torch.Tensor, dim: int = -1) -> bool:
    """Whether no integer comes twice along a dimension."""
    return values.ndim > 0 and values.shape[dim] > 1 and bool((values.sort(dim=dim).values.diff(dim=dim) != 0).all())


def _random_integers(
    sample: torch.Tensor, like: torch.Tensor, bounds: _Bounds, generator: torch.Generator
) -> torch.Tensor:
    """Draw from the sample's own range: ids stay in the vocabulary, distinct ones distinct, and sorted ones sorted."""
    least = int(sample.min())
    largest = min(int(sample.max()), torch.iinfo(torch.int64).max - 1)
    if bounds.count is not None:
        largest = max(least, min(largest, bounds.count))
    count = largest - least + 1
    if not like.numel() or count > _LARGEST_PERMUTATION or not _is_distinct(sample):
        values = torch.randint(least, largest + 1, tuple(like.shape), generator=generator, device="cpu")
    elif like.shape[-1] > count:  # an axis has grown: its positions in another order
        return like.gather(-1, _permutations(like.shape, like.shape[-1], generator).to(like.device))
    else:
        values = _permutations(like.shape, count, generator) + least
    if sample.ndim and sample.shape[-1] > 2 and bool((sample.long().diff(dim=-1) >= 0).all()):
        values = values.sort(dim=-1).values
        values[..., 0] = least  # offsets begin at their least one
    return values.to(like.device, like.dtype)


def _permutations(shape: Sequence[int], count: int, generator: torch.Generator) -> torch.Tensor:
    """Lines of distinct integers below `count`."""
    lines = range(math.prod(shape[:-1]))
    orders = [torch.randperm(count, generator=generator, device="cpu")[: shape[-1]] for _ in lines]
    return torch.stack(orders).reshape(tuple(shape))


def _bounded(values: torch.Tensor, sample: torch.Tensor, bounds: _Bounds, guess: Guess) -> torch.Tensor:
    """Integers no larger than the axis that bounds them allows; distinct ones become their ranks."""
    if bounds.index is None or bounds.count is None or values.numel() == 0:
        return values
    is_positive = guess.keeps_positive and int(sample.min()) >= 1
    most = max(bounds.count, 1) if is_positive else bounds.count if guess.keeps_positive else bounds.index
    if int(values.max()) <= most:
        return values
    if _is_distinct(values) and values.shape[-1] <= most + 1 - is_positive:
        return values.argsort(-1).argsort(-1).to(values.dtype) + int(is_positive)
    return values.clamp(max=most) if bounds.is_strict else values


def _shuffled_rows(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Whole rows of a mask in another order, because a mask of random bits may mask everything."""
    order = torch.randperm(values.shape[0] if values.ndim else 0, generator=generator, device="cpu")
    return values[order.to(values.device)] if values.ndim else values


def _resized_mask(sample: torch.Tensor, shape: Sequence[int], is_inverted: bool) -> torch.Tensor:
    """The sample's mask cut or repeated; where all of a line would be hidden, its end is shown.

    Lines that the sample hides as a whole stay hidden.

    Args:
        sample: a mask.
        shape: the new one.
        is_inverted: whether the value that `_shown` finds means hidden.
    """
    values = resized(sample, shape)
    shown = _shown(sample, is_inverted)
    dim = max((dim for dim, size in enumerate(sample.shape) if size > 1), default=0)  # along which lines go
    if shown is None or not 0 < values.shape[dim] < sample.shape[dim]:
        return values
    is_hidden = (values != shown).all(dim, keepdim=True)
    was_mixed = (sample == shown).any(dim, keepdim=True) & (sample != shown).any(dim, keepdim=True)
    was_mixed = resized(was_mixed, is_hidden.shape)
    places = torch.arange(values.shape[dim], device=values.device)
    is_end = (places == values.shape[dim] - 1).reshape([-1 if d == dim else 1 for d in range(values.ndim)])
    return torch.where(is_hidden & was_mixed & is_end, shown, values)


def _shown(sample: torch.Tensor, is_inverted: bool) -> torch.Tensor | None:
    """The value of entries that count: the value of whole lines if there are any, else the more frequent one.

    Masks to be added are 0 there. None where the sample has one value only.
    """
    distinct = cast("torch.Tensor", sample.unique())
    if len(distinct) != 2:
        return None
    if sample.is_floating_point():
        return distinct[1]
    lines = sample.reshape(-1, sample.shape[-1]) if sample.ndim else sample.reshape(1, 1)
    whole = [value for value in distinct if bool((lines == value).all(-1).any())]
    frequent = distinct[int(int((sample == distinct[1]).sum()) * 2 >= sample.numel())]
    shown = whole[0] if len(whole) == 1 else frequent
    return distinct[int(bool(shown == distinct[0]))] if is_inverted else shown
