"""Tensors → a 64-bit number of each one's values, by which a change of any of them shows.

Enters: parameters and buffers, on any device. Leaves: numbers, equal on every device. Apart from `refit` because
nothing else can tell: a version counter does not move when values are written through `.data`, by a CUDA graph of the
optimizer or by a kernel of one's own, and it moves when nothing has changed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import cast

import torch

__all__ = ["WeightSnapshot", "fingerprints", "take_snapshot"]

_PIECE = 1 << 22  # elements that are weighed at once, or up to twice as many, in at most 300 MiB of temporaries
_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15  # odd, and without small multiples that are small: Knuth's golden ratio
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_Piece = tuple[str, torch.Tensor]  # of which tensor, its elements' bits


@dataclass(frozen=True)
class WeightSnapshot:
    """Fingerprints, and marks by which a later look may spare them: where each tensor lies, and its version."""

    numbers: Mapping[str, int]
    marks: Mapping[str, tuple[int, int]] | None


def take_snapshot(tensors: Mapping[str, torch.Tensor], before: WeightSnapshot | None = None) -> WeightSnapshot:
    """The fingerprints of tensors.

    Args:
        tensors: as for `fingerprints`.
        before: of the same tensors an instant ago; its numbers are taken over where the marks are the same. Within that
            instant a write that moves no version, by another thread, is not seen.
    """
    plain = not any(tensor.is_inference() for tensor in tensors.values())  # those have no versions
    marks = {path: (tensor.data_ptr(), tensor._version) for path, tensor in tensors.items()} if plain else None
    if before is not None and marks is not None and before.marks == marks:
        return before
    return WeightSnapshot(fingerprints(tensors), marks)


@torch.no_grad()
def fingerprints(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of each tensor: the sum, modulo 2⁶⁴, of its elements' bits, each mixed with a number of its place.

    One element can't change without changing it, and several leave it the same by chance alone, about once in 2⁶⁴.
    Waits for the GPU.

    Args:
        tensors: by name, dense, on any devices, of any strides.
    """
    found = dict.fromkeys(tensors, 0)
    for device in {tensor.device for tensor in tensors.values()}:
        here = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        names, sums = _sums(here, device)
        for name, part in zip(names, sums, strict=True):
            found[name] = (found[name] * _FACTOR + part) & _MASK
    return found


def _sums(tensors: Mapping[str, torch.Tensor], device: torch.device) -> tuple[list[str], list[int]]:
    """The weighted sum of every piece, in order."""
    names: list[str] = []
    sums: list[torch.Tensor] = []
    factors: torch.Tensor | None = None
    for group in _groups(tensors):
        if factors is None:
            longest = max(tensor.numel() for tensor in tensors.values())
            factors = _factors(min(2 * longest, _PIECE), device)  # complex numbers are two
        names += [name for name, _ in group]
        sums.append(_weighed([piece for _, piece in group], factors))
    return names, cast("list[int]", torch.cat(sums).tolist()) if sums else []


def _groups(tensors: Mapping[str, torch.Tensor]) -> Generator[list[_Piece]]:
    """Pieces of one integer type, together fewer than twice `_PIECE` elements: few kernels do for many tensors."""
    held: dict[torch.dtype, tuple[list[_Piece], int]] = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        bits = _bits(tensor)
        whole = bits.numel() <= _PIECE
        for piece in (bits,) if whole else cast("tuple[torch.Tensor, ...]", bits.split(_PIECE)):
            group, size = held.pop(piece.dtype, ([], 0))
            group.append((name, piece))
            if size + piece.numel() >= _PIECE:
                yield group
            else:
                held[piece.dtype] = (group, size + piece.numel())
    for group, _ in held.values():
        yield group


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    flat = plain.resolve_neg()
    flat = flat if flat.ndim == 1 else flat.reshape(-1)
    return flat.view(_INTEGERS[flat.element_size()])


def _factors(count: int, device: torch.device) -> torch.Tensor:
    """Odd numbers without a pattern, or changes that follow one would cancel each other out."""
    mixed = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    for _ in range(2):
        mixed *= _FACTOR - (1 << 64)  # the same number modulo 2⁶⁴, in int64's range
        mixed ^= mixed >> 29
    return mixed.bitwise_or_(1)


def _weighed(pieces: list[torch.Tensor], factors: torch.Tensor) -> torch.Tensor:
    sizes = [piece.numel() for piece in pieces]
    mixed = torch.cat(pieces).to(torch.int64)
    # Bits that change in step, such as signs, must not cancel each other out in the sum.
    first = {size: factors[:size] for size in set(sizes)}
    mixed *= torch.cat([first[size] for size in sizes])
    mixed ^= (mixed >> 32) & 0xFFFFFFFF
    mixed *= _FACTOR - (1 << 64)
    mixed ^= (mixed >> 29) & ((1 << 35) - 1)
    total = mixed.cumsum(0)
    ends = torch.tensor(sizes).cumsum(0).sub_(1).to(factors.device)
    upto = total[ends]
    return torch.diff(upto, prepend=upto.new_zeros(1))
