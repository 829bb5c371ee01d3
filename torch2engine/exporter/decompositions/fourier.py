"""Discrete Fourier transforms as matrix products.

Enters: the arguments of one of PyTorch's three transforms. Leaves: its result. Separate because TensorRT has no
transform. The work grows with the square of a dimension's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FOURIER"]

_BY_ROOT = 1
_BY_SIZE = 2


@dataclass(frozen=True)
class _Parts:
    """Real and imaginary parts."""

    real: Tensor
    imaginary: Tensor

    def to_complex(self) -> Tensor:
        return torch.complex(self.real, self.imaginary)


def _waves(size: int, count: int, like: Tensor) -> _Parts:
    """cos and sin of 2 pi j k / size for j = 0 .. size - 1 and k = 0 .. count - 1: [size, count]."""
    rows = torch.arange(size, device=like.device).unsqueeze(-1)
    columns = torch.arange(count, device=like.device)
    turns = (rows * columns) % size  # whole numbers keep the angle exact
    angles = turns.to(like.dtype) * (2.0 * math.pi) / size
    return _Parts(torch.cos(angles), torch.sin(angles))


def _transform(parts: _Parts, dim: int, sign: float) -> _Parts:
    """Transform one dimension of a complex tensor."""
    real = parts.real.movedim(dim, -1)
    imaginary = parts.imaginary.movedim(dim, -1)
    waves = _waves(real.shape[-1], real.shape[-1], real)
    new_real = real @ waves.real - sign * (imaginary @ waves.imaginary)
    new_imaginary = imaginary @ waves.real + sign * (real @ waves.imaginary)
    return _Parts(new_real.movedim(-1, dim), new_imaginary.movedim(-1, dim))


def _scaled(parts: _Parts, sizes: Sequence[int], normalization: int) -> _Parts:
    scale = _scale(sizes, normalization)
    return parts if scale is None else _Parts(parts.real * scale, parts.imaginary * scale)


def _scale(sizes: Sequence[int], normalization: int) -> float | None:
    """The factor of `_fft_r2c` and its like: 0 for none, 1 for 1 / sqrt(n), 2 for 1 / n."""
    if normalization not in (_BY_ROOT, _BY_SIZE):
        return None
    count = math.prod(sizes)
    return count**-0.5 if normalization == _BY_ROOT else 1.0 / count


def _of_real(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    """`_fft_r2c`: the last of the dimensions is transformed first, since it is real."""
    last = dims[-1]
    rows = x.movedim(last, -1)
    size = rows.shape[-1]
    waves = _waves(size, size // 2 + 1 if onesided else size, rows)
    parts = _Parts((rows @ waves.real).movedim(-1, last), -(rows @ waves.imaginary).movedim(-1, last))
    for dim in dims[:-1]:
        parts = _transform(parts, dim, -1.0)
    return _scaled(parts, [x.shape[dim] for dim in dims], normalization).to_complex()


def _of_complex(x: Tensor, dims: Sequence[int], normalization: int, forward: bool) -> Tensor:
    """`_fft_c2c`."""
    parts = _split(x)
    for dim in dims:
        parts = _transform(parts, dim, -1.0 if forward else 1.0)
    return _scaled(parts, [x.shape[dim] for dim in dims], normalization).to_complex()


def _split(x: Tensor) -> _Parts:
    pairs = torch.view_as_real(x)
    return _Parts(pairs.select(-1, 0), pairs.select(-1, 1))


def _to_real(x: Tensor, dims: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    """`_fft_c2r`: of half a spectrum, whose other half is the conjugate."""
    parts = _split(x)
    for dim in dims[:-1]:
        parts = _transform(parts, dim, 1.0)
    last = dims[-1]
    half = last_dim_size // 2 + 1
    real = parts.real.movedim(last, -1).narrow(-1, 0, half)
    imaginary = parts.imaginary.movedim(last, -1).narrow(-1, 0, half)
    waves = _waves(last_dim_size, half, real)
    # The elements between the first and the middle stand for two each.
    places = torch.arange(half, device=x.device)
    is_alone = (places == 0) | (2 * places == last_dim_size)
    weights = torch.where(is_alone, 1.0, 2.0).to(real.dtype)
    result = (real * weights) @ waves.real.T - (imaginary * weights) @ waves.imaginary.T
    sizes = [*(x.shape[dim] for dim in dims[:-1]), last_dim_size]
    scale = _scale(sizes, normalization)
    result = result.movedim(-1, last)
    return result if scale is None else result * scale


FOURIER: Mapping[str, Callable[..., Any]] = {
    "_fft_r2c": _of_real,
    "_fft_c2c": _of_complex,
    "_fft_c2r": _to_real,
}
