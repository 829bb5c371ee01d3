"""Bitwise operators of integers, by arithmetic.

Enters: the arguments of one operator. Leaves: its result. Separate because TensorRT has no bitwise operator. Logical
operators of bools are left to torch.onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["BITS"]

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_HALF = 32
_WIDTH = {torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64, torch.uint8: 8}


def _bits(x: Tensor) -> Tensor:
    """The two's complement of each element, lowest bit first, as 0 and 1 in a last dimension."""
    powers = _powers(_value_bits(x.dtype), x)
    low = torch.remainder(torch.div(x.to(torch.int64).unsqueeze(-1), powers, rounding_mode="floor"), 2)
    if x.dtype not in _SIGNED:
        return low
    sign = (x < 0).to(torch.int64).unsqueeze(-1)
    return torch.cat((low, sign), -1)


def _value_bits(dtype: torch.dtype) -> int:
    """The number of bits without the sign's."""
    return _WIDTH[dtype] - 1 if dtype in _SIGNED else _WIDTH[dtype]


def _powers(count: int, like: Tensor) -> Tensor:
    """1, 2, 4, ..., as int64."""
    return torch.pow(2, torch.arange(count, device=like.device))


def _number(bits: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_bits`."""
    count = _value_bits(like.dtype)
    value = _sum_of_powers(bits[..., : min(count, _HALF)])
    if count > _HALF:
        value = value + _sum_of_powers(bits[..., _HALF:count]) * 2**_HALF
    if like.dtype in _SIGNED:
        lowest = torch.iinfo(like.dtype).min
        value = torch.where(bits[..., -1] == 1, value + lowest, value)
    return value.to(like.dtype)


def _as_tensor(value: Tensor | int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a number, without a constant that a decomposition could not lift."""
    return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def _sum_of_powers(bits: Tensor) -> Tensor:
    """Sum up at most 32 bits: ONNX Runtime's ReduceSum rounds int64 beyond 2 ** 53 (1.32)."""
    return (bits * _powers(bits.shape[-1], bits)).sum(-1)


def _bitwise(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    def decomposition(a: Any, b: Any) -> Tensor:
        dtype = torch.result_type(a, b)
        if dtype not in _WIDTH:
            return NotImplemented
        device = next(value.device for value in (a, b) if isinstance(value, Tensor))
        left, right = (_as_tensor(value, dtype, device) for value in (a, b))
        return _number(combine(_bits(left), _bits(right)), left)

    return decomposition


def _not(x: Tensor) -> Tensor:
    """`bitwise_not`: two's complement makes it -x - 1."""
    if x.dtype not in _WIDTH:
        return NotImplemented
    return -x - 1 if x.dtype in _SIGNED else 255 - x


def _look_up(values: Tensor, places: Tensor) -> Tensor:
    """values[places], which looks into a single place in Python."""
    return values.index_select(0, places.flatten()).reshape(places.shape)


def _shift_left(x: Any, places: Any) -> Tensor:
    """`bitwise_left_shift`: bits beyond the width are lost, as in PyTorch."""
    dtype = torch.result_type(x, places)
    if dtype not in (torch.int32, torch.int64) or not isinstance(x, Tensor):
        return NotImplemented
    width = _WIDTH[dtype]
    places = _as_tensor(places, torch.int64, x.device)
    ends = [torch.full((1,), end, dtype=torch.int64, device=x.device) for end in (torch.iinfo(dtype).min, 0)]
    powers = torch.cat((_powers(width - 1, x), *ends)).to(dtype)
    outside = (places < 0) | (places >= width)
    return x.to(dtype) * _look_up(powers, torch.where(outside, width, places))


def _shift_right(x: Any, places: Any) -> Tensor:
    """`bitwise_right_shift`: rounds down, so that the sign stays."""
    dtype = torch.result_type(x, places)
    if dtype not in (torch.int32, torch.int64) or not isinstance(x, Tensor):
        return NotImplemented
    last = _WIDTH[dtype] - 2
    places = _as_tensor(places, torch.int64, x.device)
    outside = (places < 0) | (places > last)
    divisor = _look_up(_powers(last + 1, x), torch.where(outside, last, places))
    shifted = torch.div(x.to(torch.int64), divisor, rounding_mode="floor")
    return torch.where(outside, torch.where(x < 0, -1, 0), shifted).to(dtype)


_AND = _bitwise(torch.mul)
_OR = _bitwise(torch.maximum)
_XOR = _bitwise(lambda a, b: (a != b).to(torch.int64))

BITS: Mapping[str, Callable[..., Any]] = {
    **{f"bitwise_and.{form}": _AND for form in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"bitwise_or.{form}": _OR for form in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"bitwise_xor.{form}": _XOR for form in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"bitwise_left_shift.{form}": _shift_left for form in ("Tensor", "Tensor_Scalar")},
    **{f"bitwise_right_shift.{form}": _shift_right for form in ("Tensor", "Tensor_Scalar")},
    "__lshift__.Tensor": _shift_left,
    "__lshift__.Scalar": _shift_left,
    "__rshift__.Tensor": _shift_right,
    "__rshift__.Scalar": _shift_right,
    "bitwise_not": _not,
}
