"""Logarithms and exponentials that stay right far out and near zero.

Enters: the arguments of one operator. Leaves: its result. Separate because torch.onnx writes these as plain `log` and
`exp`, which overflow (log_sigmoid(-100) gives -inf) or cancel (log1p(1e-8) gives 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["LOGARITHMS", "as_floating", "log1p"]

# Below this, 1 + x loses digits of x. The series in s = x / (2 + x) then needs five terms for float32.
_SMALL = 0.25
_LOG_SERIES = (1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
_BCE_LOWEST_LOG = -100.0  # where PyTorch's binary_cross_entropy limits its logarithms
_REDUCTIONS: Mapping[int, Callable[[Tensor], Tensor]] = {0: lambda loss: loss, 1: torch.mean, 2: torch.sum}


def as_floating(x: Tensor) -> Tensor:
    """Convert integers to the default floating dtype, as PyTorch's floating functions do."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def log1p(x: Tensor) -> Tensor:
    """Compute log(1 + x); near zero by 2 atanh(s) with s = x / (2 + x)."""
    x = as_floating(x)
    s = x / (x + 2.0)
    square = s * s
    series = torch.full_like(square, _LOG_SERIES[0])
    for term in _LOG_SERIES[1:]:
        series = series * square + term
    return torch.where(x.abs() < _SMALL, 2.0 * s * series, torch.log(x + 1.0))


def expm1(x: Tensor) -> Tensor:
    """Compute exp(x) - 1; near zero by 2 t / (1 - t) with t = tanh(x / 2)."""
    x = as_floating(x)
    t = torch.tanh(x * 0.5)
    return torch.where(x.abs() < 1.0, 2.0 * t / (1.0 - t), torch.exp(x) - 1.0)


def log_sigmoid(x: Tensor) -> Tensor:
    """Compute log(1 / (1 + exp(-x)))."""
    # Not clamp(max=0), because that becomes Clip, whose other limit is the lowest finite value: -inf would be lost.
    return -torch.relu(-x) - log1p(torch.exp(-x.abs()))


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """`log_sigmoid_forward`: the result, and a buffer for a backward pass."""
    return log_sigmoid(x), x.new_empty((0,))


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(exp(a) + exp(b)); two equal infinities give themselves."""
    same_infinity = (a == b) & torch.isinf(a)
    return torch.where(same_infinity, a, torch.maximum(a, b) + log1p(torch.exp(-(a - b).abs())))


def logaddexp2(a: Tensor, b: Tensor) -> Tensor:
    """Compute log2(2 ** a + 2 ** b); two equal infinities give themselves."""
    same_infinity = (a == b) & torch.isinf(a)
    excess = log1p(torch.exp2(-(a - b).abs())) * math.log2(math.e)
    return torch.where(same_infinity, a, torch.maximum(a, b) + excess)


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Compute the logarithm of the running sum of exp(x), where each element has its own maximum.

    Memory grows with the square of the dimension's size: ONNX has no running maximum.
    """
    if x.dim() == 0:
        return x.clone()
    last = x.movedim(dim, -1)
    positions = torch.arange(last.shape[-1], device=x.device)
    before = positions.unsqueeze(-1) >= positions
    values = torch.where(before, last.unsqueeze(-2), -math.inf)
    return torch.logsumexp(values, -1).movedim(-1, dim)


def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """Compute x * log(y); 0 where x is 0, unless y is NaN."""
    return _zero_at_zero(x, y, torch.log(as_floating(y)))


def xlog1py(x: Tensor, y: Tensor) -> Tensor:
    """Compute x * log(1 + y); 0 where x is 0, unless y is NaN."""
    return _zero_at_zero(x, y, log1p(y))


def _zero_at_zero(x: Tensor, y: Tensor, logarithm: Tensor) -> Tensor:
    """x * logarithm, but 0 for an x of 0 beside a y that is a number."""
    return torch.where((x == 0) & (y == y), 0.0, x * logarithm)


def entr(x: Tensor) -> Tensor:
    """Compute -x * log(x); 0 at 0, -inf below."""
    x = as_floating(x)
    value = torch.where(x == 0, 0.0, -x * torch.log(x))
    return torch.where(x < 0, -math.inf, value)


def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """Compute log(x / (1 - x)), with x limited to eps .. 1 - eps; NaN stays NaN."""
    x = as_floating(x)
    limited = x if eps is None else x.clamp(eps, 1.0 - eps)
    return torch.log(limited / (1.0 - limited))


def binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    """Compute the loss of probabilities, with PyTorch's limit for its logarithms."""
    seen = torch.log(x).clamp(min=_BCE_LOWEST_LOG)
    unseen = log1p(-x).clamp(min=_BCE_LOWEST_LOG)
    loss = (target - 1.0) * unseen - target * seen
    return _REDUCTIONS[reduction](loss if weight is None else loss * weight)


def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Compute the loss of logits."""
    positive = log_sigmoid(x)
    if pos_weight is not None:
        positive = positive * ((pos_weight - 1.0) * target + 1.0)
    loss = (1.0 - target) * x - positive
    return _REDUCTIONS[reduction](loss if weight is None else loss * weight)


LOGARITHMS: Mapping[str, Callable[..., Any]] = {
    "log1p": log1p,
    "expm1": expm1,
    "special_expm1": expm1,
    "special_log1p": log1p,
    "log_sigmoid": log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "logaddexp": logaddexp,
    "logaddexp2": logaddexp2,
    "logcumsumexp": logcumsumexp,
    "xlogy.Tensor": xlogy,
    "special_xlog1py": xlog1py,
    "special_entr": entr,
    "logit": logit,
    "special_logit": logit,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
}
