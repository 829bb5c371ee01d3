"""Tensors → a 64-bit fingerprint of the values of each, which shows any change of them.

Enters: parameters and buffers, on any device. Leaves: numbers, equal on every device. Separate because refits and the
cache both need it. A version counter can't replace the comparison. It does not count writes through `.data`, by a CUDA
graph of the optimizer, or by a user's own kernel. It also moves when no value has changed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from torch2engine.capture.torch_types import real_form

__all__ = ["WeightSnapshot", "fingerprints", "take_snapshot"]

_PIECE_SIZE = 1 << 22  # elements; up to twice as many are mixed at once, in at most 300 MiB of temporaries
_MASK = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, and no small multiple of it is small modulo 2**64: Knuth's golden ratio
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class WeightSnapshot:
    """Fingerprints, and marks by which a later snapshot may reuse them.

    Args:
        fingerprints: by name.
        marks: address and version of each tensor; None where tensors have no version.
    """

    fingerprints: Mapping[str, int]
    marks: Mapping[str, tuple[int, int]] | None


def take_snapshot(tensors: Mapping[str, torch.Tensor], before: WeightSnapshot | None = None) -> WeightSnapshot:
    """Take the fingerprints of tensors.

    Args:
        tensors: as for `fingerprints`.
        before: of the same tensors an instant ago. It is returned where all marks are the same. During that moment, a
            write by another thread that moves no version is missed.
    """
    have_versions = not any(tensor.is_inference() for tensor in tensors.values())
    marks = {path: (tensor.data_ptr(), tensor._version) for path, tensor in tensors.items()} if have_versions else None
    if before is not None and marks is not None and before.marks == marks:
        return before
    return WeightSnapshot(fingerprints(tensors), marks)


@torch.no_grad()
def fingerprints(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Compute the fingerprint of each tensor.

    It is the sum, modulo 2⁶⁴, of the elements' bits, each mixed with a number that depends on its place. A change of
    one element always changes it. Changes of several elements leave it the same only by chance, about once in 2⁶⁴.
    Waits for the GPU.

    Args:
        tensors: by name, dense, on any devices, of any strides.
    """
    found = dict.fromkeys(tensors, 0)
    for device in {tensor.device for tensor in tensors.values()}:
        of_device = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        for name, number in _numbers_of_pieces(of_device, device):
            found[name] = (found[name] * _MULTIPLIER + number) & _MASK
    return found


@dataclass(frozen=True)
class _Piece:
    """A part of one tensor's elements, as integers of the same bits."""

    tensor_name: str
    bits: torch.Tensor


def _numbers_of_pieces(tensors: Mapping[str, torch.Tensor], device: torch.device) -> list[tuple[str, int]]:
    """The number of every piece with its tensor's name, in order; one copy to the host for all."""
    names: list[str] = []
    sums: list[torch.Tensor] = []
    place_numbers: torch.Tensor | None = None
    for pieces in _groups_of_pieces(tensors):
        if place_numbers is None:
            longest = max(tensor.numel() for tensor in tensors.values())
            place_numbers = _numbers_of_places(min(2 * longest, _PIECE_SIZE), device)  # complex numbers are two
        names += [piece.tensor_name for piece in pieces]
        sums.append(_mixed_sums([piece.bits for piece in pieces], place_numbers))
    numbers = cast("list[int]", torch.cat(sums).tolist()) if sums else []
    return list(zip(names, numbers, strict=True))


def _groups_of_pieces(tensors: Mapping[str, torch.Tensor]) -> Generator[list[_Piece]]:
    """Pieces of one integer type, fewer than twice `_PIECE_SIZE` elements together: many tensors need few kernels."""
    groups: dict[torch.dtype, list[_Piece]] = {}
    elements: dict[torch.dtype, int] = {}
    for name, tensor in tensors.items():
        for bits in _pieces(tensor):
            dtype = bits.dtype
            groups.setdefault(dtype, []).append(_Piece(name, bits))
            elements[dtype] = elements.get(dtype, 0) + bits.numel()
            if elements[dtype] >= _PIECE_SIZE:
                yield groups.pop(dtype)
                del elements[dtype]
    yield from groups.values()


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """A tensor's elements as integers of the same bits, in pieces of at most `_PIECE_SIZE`."""
    if not tensor.numel():
        return ()
    values = real_form(tensor).resolve_neg()
    flat = values if values.ndim == 1 else values.reshape(-1)
    bits = flat.view(_INTEGER_OF_SIZE[flat.element_size()])
    return (bits,) if bits.numel() <= _PIECE_SIZE else torch.split(bits, _PIECE_SIZE)


def _numbers_of_places(count: int, device: torch.device) -> torch.Tensor:
    """Odd numbers without a pattern, so that changes with a pattern don't cancel each other out."""
    numbers = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    for _ in range(2):
        numbers *= _MULTIPLIER - (1 << 64)  # the same number modulo 2⁶⁴, in int64's range
        numbers ^= numbers >> 29
    return numbers.bitwise_or_(1)


def _mixed_sums(pieces: list[torch.Tensor], place_numbers: torch.Tensor) -> torch.Tensor:
    """The sum of each piece's elements, mixed with the numbers of their places."""
    sizes = [piece.numel() for piece in pieces]
    mixed = torch.cat(pieces).to(torch.int64)
    # Bits that change in step, such as signs, must not cancel each other out in the sum.
    places_of_size = {size: place_numbers[:size] for size in set(sizes)}
    mixed *= torch.cat([places_of_size[size] for size in sizes])
    mixed ^= (mixed >> 32) & 0xFFFFFFFF
    mixed *= _MULTIPLIER - (1 << 64)
    mixed ^= (mixed >> 29) & ((1 << 35) - 1)
    running_sum = mixed.cumsum(0)
    last_indices = torch.tensor(sizes, device="cpu").cumsum(0).sub_(1).to(place_numbers.device)
    sums_up_to = running_sum[last_indices]
    return torch.diff(sums_up_to, prepend=sums_up_to.new_zeros(1))
