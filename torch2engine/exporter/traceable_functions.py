"""PyTorch's functions that look into sizes, values, memory or the device, for models that are traced.

Enters: a model while it is traced. Leaves: nothing; meanwhile these functions are computed from others. Separate
because torch would fix the axis that such a size follows, refuse a check of values that no engine can make, lose what
is written through `.data`, or choose an operator that exists on a GPU alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import SymInt, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from torch2engine.exporter.decompositions.device_forms import DEVICE_FUNCTIONS
from torch2engine.exporter.decompositions.memory_layout import MEMORY_FUNCTIONS
from torch2engine.exporter.decompositions.size_bounds import is_fixed

__all__ = ["GradientError", "TraceableFunctions"]


class GradientError(RuntimeError):
    """A model that is traced computes a gradient."""


class TraceableFunctions(TorchFunctionMode):
    """While it is active, functions of `_ALWAYS` and `_OF_SYMBOLIC_SIZES` are replaced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a function that torch could not trace; call any other."""
        options: Mapping[str, Any] = kwargs or {}
        if func == _DATA_OF:
            return args[0].detach()  # torch loses a write into `.data`; it keeps one into `detach()`
        name = getattr(func, "__name__", "")
        replacement = _ALWAYS.get(name)
        if replacement is None and name in _OF_SYMBOLIC_SIZES and _has_symbolic_size((args, options)):
            replacement = _OF_SYMBOLIC_SIZES[name]
        result = NotImplemented if replacement is None else replacement(*args, **options)
        return func(*args, **options) if result is NotImplemented else result


def _has_symbolic_size(arguments: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return any(isinstance(size, SymInt) for tensor in tensors for size in tensor.shape)


def _cov(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    """`cov`: PyTorch looks whether a weight is negative."""
    if x.dim() > 2 or not x.is_floating_point():
        return NotImplemented
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    weights = [weight for weight in (fweights, aweights) if weight is not None]
    if not weights:
        centered = rows - rows.mean(1, keepdim=True)
        count: Any = cast("Any", torch.sym_max)(rows.shape[1] - correction, 0)
        return _without_ones(centered @ centered.mT / count)
    weight = functools.reduce(torch.mul, weights)
    total = weight.sum()
    centered = rows - (rows * weight).sum(1, keepdim=True) / total
    if aweights is None:
        divisor = total - correction
    else:
        divisor = total - correction * (weight * aweights).sum() / total
    return _without_ones((centered * weight) @ centered.mT / divisor.clamp(min=0))


def _without_ones(matrix: Tensor) -> Tensor:
    """A matrix of one row as a number."""
    return matrix.reshape(()) if is_fixed(matrix.shape[0]) and matrix.shape[0] == 1 else matrix


def _corrcoef(x: Tensor) -> Tensor:
    """`corrcoef`: by `cov`."""
    covariance = _cov(x)
    if covariance is NotImplemented:
        return NotImplemented
    if covariance.dim() == 0:
        return covariance / covariance
    deviation = covariance.diagonal().sqrt()
    return (covariance / deviation.unsqueeze(1) / deviation.unsqueeze(0)).clamp(-1.0, 1.0)


def _gaussian_nll_loss(
    input: Tensor,  # PyTorch's name
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """`gaussian_nll_loss`: PyTorch looks whether a variance is negative."""
    variance = var if isinstance(var, Tensor) else torch.full_like(input, var)
    if variance.dim() == input.dim() - 1:
        variance = variance.unsqueeze(-1)
    variance = variance.clamp(min=eps)
    loss = 0.5 * (torch.log(variance) + (input - target) ** 2 / variance)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _linear_cross_entropy(*args: Any, options: Any = None, **keywords: Any) -> Tensor:
    """`linear_cross_entropy` in chunks: they save memory, which an engine plans itself."""
    if options is None:
        return NotImplemented
    function: Any = torch.nn.functional.linear_cross_entropy
    return function(*args, **keywords)


def _take_along_dim(x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`take_along_dim`: `gather` of expanded tensors; PyTorch takes places beyond the end from the beginning."""
    if dim is None:
        return _take_along_dim(x.flatten(), indices.flatten(), 0)
    dim = dim % x.dim()
    sizes = [[*tensor.shape[:dim], 1, *tensor.shape[dim + 1 :]] for tensor in (x, indices)]
    both: list[Any] = list(cast("Any", torch.broadcast_shapes)(*sizes))
    of_x = [*both[:dim], x.shape[dim], *both[dim + 1 :]]
    of_indices = [*both[:dim], indices.shape[dim], *both[dim + 1 :]]
    places = torch.remainder(indices, x.shape[dim])
    return x.expand(of_x).gather(dim, places.expand(of_indices))


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """`kron`: every element of one times the whole other."""
    rank = max(a.dim(), b.dim())
    a = a.reshape([1] * (rank - a.dim()) + list(a.shape))
    b = b.reshape([1] * (rank - b.dim()) + list(b.shape))
    left = a.reshape([size for pair in zip(a.shape, [1] * rank, strict=True) for size in pair])
    right = b.reshape([size for pair in zip([1] * rank, b.shape, strict=True) for size in pair])
    return (left * right).reshape([one * other for one, other in zip(a.shape, b.shape, strict=True)])


def _einsum(equation: str, *operands: Any, path: Any = None) -> Tensor:
    """`einsum` from the left: PyTorch lets opt_einsum choose the order by the sizes, where that is installed."""
    del path
    tensors = operands if isinstance(operands[0], Tensor) else operands[0]
    operator: Any = torch.ops.aten.einsum  # `torch.einsum` would ask opt_einsum
    return operator(equation, tensors)


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """`linalg.multi_dot`: from the left, since the cheapest order depends on the sizes."""
    return functools.reduce(torch.matmul, tensors)


def _gradient(x: Tensor, *, spacing: Any = None, dim: Any = None, edge_order: int = 1) -> tuple[Tensor, ...]:
    """`gradient` of evenly spaced elements."""
    dims = list(range(x.dim())) if dim is None else _as_list(dim)
    steps = _as_list(1 if spacing is None else spacing)
    steps = steps * len(dims) if len(steps) == 1 else steps
    if not x.is_floating_point() or any(isinstance(step, Tensor) for step in steps):
        return NotImplemented
    return tuple(_slope(x, of, step, edge_order) for of, step in zip(dims, steps, strict=True))


def _as_list(value: Any) -> list[Any]:
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _slope(x: Tensor, dim: int, step: float, edge_order: int) -> Tensor:
    size = x.shape[dim]
    inside = (x.narrow(dim, 2, size - 2) - x.narrow(dim, 0, size - 2)) / (2 * step)
    ends: list[Tensor] = []
    for places, sign in (((0, 1, 2), 1.0), ((size - 1, size - 2, size - 3), -1.0)):
        first, second = (x.narrow(dim, place, 1) for place in places[:2])
        if edge_order == 1:
            rise = second - first
        else:
            rise = 2.0 * second - 1.5 * first - 0.5 * x.narrow(dim, places[2], 1)
        ends.append(sign * rise / step)
    return torch.cat((ends[0], inside, ends[1]), dim)


def _refuse_gradient(*args: Any, **options: Any) -> Tensor:
    """`autograd.grad` and `Tensor.backward`: a program has no gradients."""
    del args, options
    raise GradientError("a gradient in forward")


_DATA_OF: Any = cast("Any", Tensor.data).__get__
_ALWAYS: Mapping[str, Callable[..., Any]] = {
    **DEVICE_FUNCTIONS,
    **MEMORY_FUNCTIONS,
    "grad": _refuse_gradient,
    "backward": _refuse_gradient,
    "cov": _cov,
    "corrcoef": _corrcoef,
    "einsum": _einsum,
    "gaussian_nll_loss": _gaussian_nll_loss,
    "linear_cross_entropy": _linear_cross_entropy,
}
_OF_SYMBOLIC_SIZES: Mapping[str, Callable[..., Any]] = {
    "take_along_dim": _take_along_dim,
    "kron": _kron,
    "linalg_multi_dot": _multi_dot,
    "gradient": _gradient,
}
