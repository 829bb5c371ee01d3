"""Complex numbers as pairs of real ones, for the operators that torch.onnx has in real arithmetic only.

Enters: the arguments of one operator. Leaves: its result; NotImplemented for real tensors. Separate because ONNX has no
complex type. torch.onnx writes a complex tensor as a real one with a last dimension of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["COMPLEX_NUMBERS"]


def _unsqueeze(x: Tensor, dim: int) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    return torch.view_as_complex(torch.view_as_real(x).unsqueeze(dim % (x.dim() + 1)))


def _expand(x: Tensor, size: Sequence[int], *, implicit: bool = False) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    return torch.view_as_complex(torch.view_as_real(x).expand(*size, 2).contiguous())


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    return torch.view_as_complex(torch.view_as_real(x).select(dim % x.dim(), index))


def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    return torch.view_as_complex(torch.view_as_real(x).index_select(dim % x.dim(), index))


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).select(-1, 0) if x.is_complex() else NotImplemented


def _imaginary(x: Tensor) -> Tensor:
    return torch.view_as_real(x).select(-1, 1) if x.is_complex() else NotImplemented


def _polar(size: Tensor, angle: Tensor) -> Tensor:
    return torch.complex(size * torch.cos(angle), size * torch.sin(angle))


def _exp(x: Tensor) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    size = torch.exp(_real(x))
    return _polar(size, _imaginary(x))


def _divide(a: Any, b: Any) -> Tensor:
    """`div` by a complex number: a times its conjugate over its square."""
    if not (isinstance(b, Tensor) and b.is_complex()):
        return NotImplemented
    real = _real(b)
    imaginary = _imaginary(b)
    square = real * real + imaginary * imaginary
    return a * torch.complex(real / square, -imaginary / square)


def _conjugate(x: Tensor) -> Tensor:
    return torch.complex(_real(x), -_imaginary(x)) if x.is_complex() else NotImplemented


def _constant_pad(x: Tensor, padding: Sequence[int], value: float = 0) -> Tensor:
    if not x.is_complex():
        return NotImplemented
    real = torch.constant_pad_nd(_real(x), padding, value)
    return torch.complex(real, torch.constant_pad_nd(_imaginary(x), padding, 0))


def _einsum(equation: str, tensors: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Tensor:
    """`einsum` of one or two tensors: the product of complex numbers is four real products."""
    if len(tensors) > 2 or not all(tensor.is_complex() for tensor in tensors):
        return NotImplemented

    def product(*parts: Tensor) -> Tensor:
        return torch.einsum(equation, *parts)

    first, *others = tensors
    if not others:
        return torch.complex(product(_real(first)), product(_imaginary(first)))
    (second,) = others
    real = product(_real(first), _real(second)) - product(_imaginary(first), _imaginary(second))
    imaginary = product(_real(first), _imaginary(second)) + product(_imaginary(first), _real(second))
    return torch.complex(real, imaginary)


def _zeros(size: Sequence[int], *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    if dtype is None or not dtype.is_complex:
        return NotImplemented
    part = torch.zeros(size, dtype=dtype.to_real(), device=device)
    return torch.complex(part, part)


def _by_parts(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator that moves numbers: it moves the real and the imaginary parts alike."""

    def decomposition(x: Tensor, *args: Any) -> Tensor:
        if not x.is_complex():
            return NotImplemented
        parts = [
            operator(part(x), *[part(arg) if isinstance(arg, Tensor) else arg for arg in args])
            for part in (_real, _imaginary)
        ]
        return torch.complex(*parts)

    return decomposition


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`copy`: source in the shape and the type of x."""
    return source.expand(x.shape).to(x.dtype) if x.is_complex() and source.is_complex() else NotImplemented


COMPLEX_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "select.int": _select,
    "index_select": _index_select,
    "real": _real,
    "imag": _imaginary,
    "polar": _polar,
    "einsum": _einsum,
    "zeros": _zeros,
    "copy": _copy,
    "slice_scatter": _by_parts(torch.slice_scatter),
    "select_scatter": _by_parts(torch.select_scatter),
    "flip": _by_parts(torch.flip),
    "roll": _by_parts(torch.roll),
    "exp": _exp,
    "div.Tensor": _divide,
    "conj_physical": _conjugate,
    "_conj_physical": _conjugate,
    "constant_pad_nd": _constant_pad,
}
