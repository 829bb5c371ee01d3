"""Functions that round beside a number of their own: their results move by a share of it.

Enters: a model while it answers. Leaves: nothing; meanwhile the results of such functions are moved. Separate because
the rounding of inputs and weights does not show this. It moves sigmoid(-30) by a few units of its last place. But a
usual form of the sigmoid, 0.5 + 0.5 * tanh(x / 2), is off by a unit of 1, and so gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["STEP", "FunctionRounding"]

STEP = 2.0**-28
"""Of the function's own number. Half a unit of float32 is 2**-24, and bounds allow 16 times what a movement is."""


def _one(x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    """A sigmoid: its results lie beside 1."""
    return torch.ones_like(x)


def _argument(x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    """The argument times a sigmoid."""
    return x.abs()


def _first_half(x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    """The argument's first half times the sigmoid of the other."""
    return x.chunk(2, arguments[0] if arguments else -1)[0].abs()


_NUMBERS: Mapping[str, Callable[[torch.Tensor, tuple[Any, ...]], torch.Tensor]] = {
    "aten::erfc": _one,
    "aten::gelu": _argument,
    "aten::glu": _first_half,
    "aten::hardsigmoid": _one,
    "aten::hardswish": _argument,
    "aten::mish": _argument,
    "aten::sigmoid": _one,
    "aten::silu": _argument,
}


class FunctionRounding(TorchDispatchMode):
    """While it is active, results of the functions in `_NUMBERS` move up or down by `STEP` of their own number.

    Args:
        signs: gives 1 or -1 for each element of a tensor.
    """

    def __init__(self, signs: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._signs = signs

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile work below: else it skips a function here, remembers that, and skips it ever after."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and move its result, in place where the operator writes in place."""
        number_of = _NUMBERS.get(str(func._schema.name).removesuffix("_"))
        if number_of is None:
            return func(*args, **(kwargs or {}))
        number = number_of(args[0], args[1:])  # before an operator in place writes there
        result = func(*args, **(kwargs or {}))
        if result.is_floating_point():
            result.addcmul_(number.to(result.dtype), self._signs(result), value=STEP)
        return result
