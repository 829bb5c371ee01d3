"""Sizes that a model puts into tensors and takes out again, as in `x[:, : torch.tensor(x.shape[1]) - 1]`.

Enters: a model while it is traced. Leaves: nothing; meanwhile a number that is computed from sizes stays known as an
expression of them. Separate because torch forgets it in the tensor, and then takes such a size for one that depends on
values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SizeTensors"]

_TORCH: Any = torch  # its own annotations are partly unknown
_WHOLE = (torch.int32, torch.int64)  # narrower types could not hold every size


class SizeTensors(TorchFunctionMode):
    """While it is active, a 0-d integer tensor that functions of `_RULES` make from sizes knows its value.

    torch keeps the number that it took from a traced tensor once, for the next time (`FakeTensor.item_memo`, torch 2.9
    to 2.13). The number is written there beforehand. A write into the tensor makes torch drop it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and note the number in its result."""
        options: Mapping[str, Any] = kwargs or {}
        numbers = _numbers(func, args, options)
        result = func(*args, **options)
        if numbers is not None and _holds_a_number(result):
            value = _RULES[func.__name__](*numbers)
            if isinstance(value, SymInt):
                result.item_memo = value
        return result


def _numbers(func: Any, args: Any, options: Mapping[str, Any]) -> list[Any] | None:
    """The numbers that a rule computes with; None where there is no rule, or nothing symbolic."""
    name = getattr(func, "__name__", "")
    if name not in _RULES or "alpha" in options or "out" in options:
        return None
    if name in _OF_ONE:
        numbers = [_number(args[1] if name == "new_tensor" else args[0])] if args else []
    elif "rounding_mode" in options:
        numbers: list[Any] = [*map(_number, args), options["rounding_mode"]]
    else:
        numbers = [*map(_number, args)]
    is_complete = len(numbers) > 0 and all(number is not None for number in numbers)
    return numbers if is_complete and any(isinstance(number, SymInt) for number in numbers) else None


def _number(value: Any) -> Any:
    """The whole number in an argument; None where it is none, or unknown."""
    if isinstance(value, SymInt) or type(value) is int:
        return value
    return value.item_memo if _holds_a_number(value) else None


def _holds_a_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and value.dtype in _WHOLE and hasattr(value, "item_memo")


def _same(value: Any) -> Any:
    return value


def _product(a: Any, b: Any) -> Any:
    return a * b


def _floor_quotient(a: Any, b: Any) -> Any:
    return a // b


def _remainder(a: Any, b: Any) -> Any:
    return a % b


def _least(a: Any, b: Any) -> Any:
    return _TORCH.sym_min(a, b)


def _largest(a: Any, b: Any) -> Any:
    return _TORCH.sym_max(a, b)


def _reversed_difference(subtrahend: Any, minuend: Any) -> Any:
    return minuend - subtrahend


def _quotient(dividend: Any, divisor: Any, rounding_mode: str = "") -> Any:
    """`div` with a rounding mode. Rounding towards zero is rounding down where no number is negative."""
    if rounding_mode == "trunc" and (dividend < 0 or divisor < 0):
        return None
    return dividend // divisor if rounding_mode else None


_OF_ONE: Mapping[str, Callable[..., Any]] = dict.fromkeys(
    ("tensor", "scalar_tensor", "as_tensor", "new_tensor", "to", "long", "int", "detach", "clone", "cpu", "cuda"), _same
)
_RULES: Mapping[str, Callable[..., Any]] = {
    **_OF_ONE,
    **dict.fromkeys(("add", "__add__", "__radd__"), operator.add),
    **dict.fromkeys(("sub", "__sub__"), operator.sub),
    **dict.fromkeys(("rsub", "__rsub__"), _reversed_difference),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), _product),
    **dict.fromkeys(("floor_divide", "__floordiv__"), _floor_quotient),
    **dict.fromkeys(("remainder", "__mod__"), _remainder),
    **dict.fromkeys(("div", "divide"), _quotient),
    **dict.fromkeys(("minimum", "min"), _least),
    **dict.fromkeys(("maximum", "max"), _largest),
    **dict.fromkeys(("neg", "__neg__"), operator.neg),
}
