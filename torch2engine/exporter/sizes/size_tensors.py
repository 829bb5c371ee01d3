"""Sizes that a model puts into tensors and takes out again, as in `x[:, : torch.tensor(x.shape[1]) - 1]`.

Enters: a model while it is traced. Leaves: nothing; meanwhile a number that is computed from sizes stays known as an
expression of them. Separate because torch forgets it in the tensor, and then takes such a size for one that depends on
values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import SymInt, Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["SizeTensors", "note_integer_buffers", "read_integer_buffers"]

_TORCH: Any = torch  # its own annotations are partly unknown
_WHOLE = (torch.int32, torch.int64)  # narrower types could not hold every size


@dataclass(frozen=True)
class _Ratio:
    """A number with a fraction, kept as two whole ones: `dividend / divisor`.

    Args:
        dividend: computed from sizes.
        divisor: a positive constant.
    """

    dividend: Any
    divisor: int


@dataclass(frozen=True)
class _NotedRatio:
    """A tensor whose number is a ratio of sizes.

    Args:
        ratio: the number.
        version: the tensor's version when it was noted; a write into the tensor raises it.
    """

    ratio: _Ratio
    version: int


def read_integer_buffers(model: nn.Module) -> dict[str, int]:
    """The values of a model's 0-d integer buffers, by path."""
    return {
        name: int(buffer)
        for name, buffer in model.named_buffers()
        if buffer.ndim == 0 and buffer.dtype in _WHOLE and buffer.device.type != "meta"
    }


def note_integer_buffers(model: nn.Module, values: Mapping[str, int]) -> None:
    """Note the values of buffers in the tensors that stand for them while the model is traced."""
    for name, buffer in model.named_buffers():
        if name in values and _holds_a_number(buffer):
            _note_in(buffer, values[name])


class SizeTensors(TorchFunctionMode):
    """While it is active, a 0-d tensor that functions of `_RULES` make from sizes knows its value.

    torch keeps the number that it took from a traced tensor once, for the next time (`FakeTensor.item_memo`, torch 2.9
    to 2.13). A whole number is written there beforehand. A write into the tensor makes torch drop it. Ratios of sizes
    are kept here, until they are rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ratios: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and note the number in its result."""
        options: Mapping[str, Any] = kwargs or {}
        if getattr(func, "__name__", "") == "__bool__" and _is_comparison(args[0]):
            return bool(args[0].item_memo)
        if getattr(func, "__name__", "") in ("__getitem__", "__setitem__"):
            args = (args[0], _with_sizes(args[1]), *args[2:])
        numbers = self._numbers(func, args, options)
        result = func(*args, **options)
        if numbers is not None and isinstance(result, Tensor) and result.ndim == 0:
            self._note(result, _RULES[func.__name__](*numbers))
        return result

    def _note(self, result: Tensor, number: Any) -> None:
        """Note the number, or the answer of a comparison; an integer tensor holds a number rounded towards zero."""
        if result.dtype == torch.bool:
            if _has_memo(result):
                _note_in(result, number)
        elif result.dtype.is_floating_point:
            ratio = number if isinstance(number, _Ratio) else _Ratio(number, 1)
            if _is_symbolic(ratio):
                self._ratios[result] = _NotedRatio(ratio, result._version)
        elif _holds_a_number(result):
            whole = _truncated(number) if isinstance(number, _Ratio) else number
            if whole is not None:
                _note_in(result, whole)

    def _numbers(self, func: Any, args: Any, options: Mapping[str, Any]) -> list[Any] | None:
        """The numbers that a rule computes with; None where there is no rule, or nothing symbolic."""
        name = getattr(func, "__name__", "")
        if name not in _RULES or "alpha" in options or "out" in options:
            return None
        if name in _OF_ONE:
            numbers = [self._number(args[1] if name == "new_tensor" else args[0])] if args else []
        elif "rounding_mode" in options:
            numbers: list[Any] = [*map(self._number, args), options["rounding_mode"] or ""]
        else:
            numbers = [*map(self._number, args)]
        is_complete = len(numbers) > 0 and all(number is not None for number in numbers)
        is_known = any(map(_is_symbolic, numbers)) or any(map(_holds_a_number, args))
        return numbers if is_complete and is_known else None

    def _number(self, value: Any) -> Any:
        """The number in an argument; None where it is none, or unknown."""
        if isinstance(value, SymInt) or type(value) is int:
            return value
        if _holds_a_number(value):
            return value.item_memo
        found: _NotedRatio | None = self._ratios.get(value) if isinstance(value, Tensor) else None
        return found.ratio if found is not None and found.version == value._version else None


def _is_symbolic(number: Any) -> bool:
    return isinstance(number.dividend if isinstance(number, _Ratio) else number, SymInt)


def _holds_a_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and value.dtype in _WHOLE and _has_memo(value)


def _is_comparison(value: Any) -> bool:
    """Tell whether a tensor is the answer of a comparison that `SizeTensors` knows."""
    return value.ndim == 0 and value.dtype == torch.bool and _has_memo(value) and value.item_memo is not None


def _has_memo(tensor: Any) -> bool:
    return hasattr(tensor, "item_memo")


def _note_in(tensor: Any, number: Any) -> None:
    tensor.item_memo = number


def _truncated(ratio: _Ratio) -> Any:
    """A ratio rounded towards zero, which is down; None where it may be negative."""
    return None if ratio.dividend < 0 else ratio.dividend // ratio.divisor


def _with_sizes(index: Any) -> Any:
    """An index whose slices end at sizes, where they ended at tensors that hold them: torch 2.11 needs that."""
    if isinstance(index, tuple):
        return tuple(map(_with_sizes, cast("tuple[Any, ...]", index)))
    if not isinstance(index, slice):
        return index
    bounds = cast("Any", index)
    return slice(_size_or_same(bounds.start), _size_or_same(bounds.stop), _size_or_same(bounds.step))


def _size_or_same(bound: Any) -> Any:
    size = bound.item_memo if _holds_a_number(bound) else None
    return bound if size is None else size


def _same(value: Any) -> Any:
    return value


def _of_whole(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for whole numbers alone."""
    return lambda *numbers: None if any(isinstance(number, _Ratio) for number in numbers) else operation(*numbers)


def _parts(number: Any) -> _Ratio:
    return number if isinstance(number, _Ratio) else _Ratio(number, 1)


def _sum(a: Any, b: Any) -> Any:
    if not (isinstance(a, _Ratio) or isinstance(b, _Ratio)):
        return a + b
    left = _parts(a)
    right = _parts(b)
    return _Ratio(left.dividend * right.divisor + right.dividend * left.divisor, left.divisor * right.divisor)


def _product(a: Any, b: Any) -> Any:
    if not (isinstance(a, _Ratio) or isinstance(b, _Ratio)):
        return a * b
    left = _parts(a)
    right = _parts(b)
    return _Ratio(left.dividend * right.dividend, left.divisor * right.divisor)


def _difference(a: Any, b: Any) -> Any:
    return _sum(a, _product(b, -1))


def _reversed_difference(subtrahend: Any, minuend: Any) -> Any:
    return _difference(minuend, subtrahend)


def _quotient(dividend: Any, divisor: Any, rounding_mode: str = "") -> Any:
    """`div`: a ratio without a rounding mode. Rounding towards zero is rounding down where no number is negative."""
    if rounding_mode:
        if isinstance(dividend, _Ratio) or isinstance(divisor, _Ratio):
            return None
        return None if rounding_mode == "trunc" and (dividend < 0 or divisor < 0) else dividend // divisor
    if type(divisor) is not int or divisor <= 0:
        return None
    parts = _parts(dividend)
    return _Ratio(parts.dividend, parts.divisor * divisor)


def _rounded_down(number: Any) -> Any:
    parts = _parts(number)
    return _Ratio(parts.dividend // parts.divisor, 1)


def _rounded_up(number: Any) -> Any:
    parts = _parts(number)
    return _Ratio(-(-parts.dividend // parts.divisor), 1)


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A rule that compares two numbers by whole ones: divisors are positive."""

    def rule(a: Any, b: Any) -> Any:
        left = _parts(a)
        right = _parts(b)
        return compare(left.dividend * right.divisor, right.dividend * left.divisor)

    return rule


def _negative(number: Any) -> Any:
    return _product(number, -1)


def _floor_quotient(a: Any, b: Any) -> Any:
    return a // b


def _remainder(a: Any, b: Any) -> Any:
    return a % b


def _least(a: Any, b: Any) -> Any:
    return _TORCH.sym_min(a, b)


def _largest(a: Any, b: Any) -> Any:
    return _TORCH.sym_max(a, b)


_OF_ONE: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("tensor", "scalar_tensor", "as_tensor", "new_tensor"), _of_whole(_same)),
    **dict.fromkeys(("to", "long", "int", "float", "detach", "clone", "cpu", "cuda"), _same),
    "floor": _rounded_down,
    "ceil": _rounded_up,
}
_RULES: Mapping[str, Callable[..., Any]] = {
    **_OF_ONE,
    **dict.fromkeys(("add", "__add__", "__radd__"), _sum),
    **dict.fromkeys(("sub", "__sub__"), _difference),
    **dict.fromkeys(("rsub", "__rsub__"), _reversed_difference),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), _product),
    **dict.fromkeys(("floor_divide", "__floordiv__"), _of_whole(_floor_quotient)),
    **dict.fromkeys(("remainder", "__mod__"), _of_whole(_remainder)),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _quotient),
    **dict.fromkeys(("minimum", "min"), _of_whole(_least)),
    **dict.fromkeys(("maximum", "max"), _of_whole(_largest)),
    **dict.fromkeys(("neg", "__neg__"), _negative),
    **dict.fromkeys(("lt", "__lt__", "less"), _comparison(operator.lt)),
    **dict.fromkeys(("le", "__le__", "less_equal"), _comparison(operator.le)),
    **dict.fromkeys(("gt", "__gt__", "greater"), _comparison(operator.gt)),
    **dict.fromkeys(("ge", "__ge__", "greater_equal"), _comparison(operator.ge)),
    **dict.fromkeys(("eq", "__eq__"), _comparison(operator.eq)),
    **dict.fromkeys(("ne", "__ne__", "not_equal"), _comparison(operator.ne)),
}
