"""Tensors that forward makes from plain numbers alone, whose values are known before anything runs.

Enters: a model while it is traced. Leaves: nothing; meanwhile a number that is taken from such a tensor is that number.
Separate because torch takes every number in a tensor for one that depends on the inputs. It would refuse a branch on
it, and a tensor of that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import DisableTorchFunction  # pyright: ignore[reportPrivateUsage]  # it is nowhere else
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]  # no public way out of a trace
)
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["KnownValues"]

_MOST_ELEMENTS = 4096  # a longer tensor is a table or a mask, from which no model takes numbers
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None), type(Ellipsis))
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Known:
    """The value of a traced tensor.

    Args:
        value: the same tensor on the CPU.
        version: the traced tensor's version when it was noted; a write into the tensor raises it.
    """

    value: Tensor
    version: int


class KnownValues(TorchFunctionMode):
    """While it is active, functions of `_PURE` are also computed on the CPU where all their arguments are known.

    torch keeps the number that it took from a traced tensor once, for the next time (`FakeTensor.item_memo`, torch 2.9
    to 2.13). A known number is written there beforehand.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and note the values of its results."""
        options: Mapping[str, Any] = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "tolist" and self._is_known(args[0]):
            with _disable_current_modes(), DisableTorchFunction():  # outside of the trace
                return self._known[args[0]].value.tolist()
        results = func(*args, **options)
        if name in _PURE and "out" not in options and _are_small(results) and self._are_known((args, options)):
            with _disable_current_modes(), DisableTorchFunction():
                self._note(results, self._compute(func, args, options))
        return results

    def _is_known(self, value: Any) -> bool:
        """Whether a value is a tensor that is known, and was not written to since."""
        found: _Known | None = self._known.get(value) if isinstance(value, Tensor) else None
        return found is not None and found.version == value._version

    def _are_known(self, arguments: Any) -> bool:
        """Whether every argument is known, or is a plain value and no size of a tensor."""
        return all(type(leaf) in _PLAIN or self._is_known(leaf) for leaf in tree_leaves(_with_open_slices(arguments)))

    def _compute(self, func: Any, args: Any, options: Mapping[str, Any]) -> Any:
        """Compute a function on the CPU."""

        def on_cpu(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self._known[leaf].value
            return _CPU if isinstance(leaf, torch.device) else leaf

        return func(*tree_map(on_cpu, args), **tree_map(on_cpu, {**options}))

    def _note(self, results: Any, values: Any) -> None:
        for result, value in zip(tree_leaves(results), tree_leaves(values), strict=True):
            self._known[result] = _Known(value.to(_CPU), result._version)
            if result.ndim == 0 and hasattr(result, "item_memo"):
                result.item_memo = value.item()


def _are_small(results: Any) -> bool:
    """Whether a function has given nothing but tensors of a few elements, of sizes that are numbers."""
    leaves = tree_leaves(results)
    return all(
        isinstance(leaf, Tensor) and all(type(size) is int for size in leaf.shape) and leaf.numel() <= _MOST_ELEMENTS
        for leaf in leaves
    )


def _with_open_slices(value: Any) -> Any:
    """Arguments whose slices are lists of their bounds."""
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, (tuple, list)):
        return [*map(_with_open_slices, cast("list[Any]", value))]
    return value


_MAKERS = (
    *("arange", "as_tensor", "eye", "full", "linspace", "new_full", "new_ones", "new_tensor", "new_zeros", "ones"),
    *("ones_like", "scalar_tensor", "tensor", "zeros", "zeros_like"),
)
_ARITHMETIC = (
    *("abs", "add", "ceil", "clamp", "clip", "cumprod", "cumsum", "div", "exp", "floor", "floor_divide", "log"),
    *("log2", "maximum", "minimum", "mul", "neg", "pow", "remainder", "round", "rsub", "sqrt", "sub", "true_divide"),
    *("truediv", "floordiv", "mod", "radd", "rmul", "rpow", "rtruediv", "rfloordiv", "trunc", "where"),
)
_COMPARISONS = (
    *("eq", "ge", "gt", "isin", "le", "logical_and", "logical_not", "logical_or", "lt", "ne", "and", "or", "invert"),
)
_REDUCTIONS = ("all", "amax", "amin", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum")
_SHAPES = (
    *("cat", "clone", "contiguous", "detach", "expand", "flatten", "flip", "getitem", "iter", "permute", "repeat"),
    *("reshape", "select", "split", "squeeze", "stack", "transpose", "unbind", "unsqueeze", "view"),
)
_TYPES = ("bool", "double", "float", "int", "long", "to", "type", "type_as")
_PLAIN_NAMES = (*_MAKERS, *_ARITHMETIC, *_COMPARISONS, *_REDUCTIONS, *_SHAPES, *_TYPES)
# Functions whose results follow from their arguments, which they leave as they are.
_PURE = frozenset((*_PLAIN_NAMES, *(f"__{name}__" for name in _PLAIN_NAMES)))
