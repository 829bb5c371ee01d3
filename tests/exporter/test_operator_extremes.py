"""Operators far outside the usual range: the ONNX graph answers as PyTorch does, or the difference is named here.

Enters: zeros with sign, tiny, huge, infinite values and NaN; integers beyond 2 ** 53. Leaves: proof for each operator.
Separate because a model's sample never goes there, so that parity can't see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.models import exported
from torch2engine.onnx_graph.ort_session import OrtSession

_SIZES = (0.0, 1e-30, 1e-8, 1e-3, 0.5, 1.0, 1.5, 2.5, 3.0, 7.3, 20.0, 50.0, 89.0, 100.0, 1e4, 1e30, math.inf)
VALUES = torch.tensor([*(sign * size for size in _SIZES for sign in (1.0, -1.0)), math.nan])
FINITE = VALUES[:28].reshape(7, 4)  # up to 89
LEFT, RIGHT = (part.flatten() for part in torch.meshgrid(VALUES, VALUES, indexing="ij"))
_WHOLE = [0, 1, 2, 3, 5, 7, 100, 2**31 - 1, 2**31, 2**40 + 1, 2**53 + 1, 2**53 + 3]
INTEGERS = torch.tensor([sign * number for number in _WHOLE for sign in (1, -1)])
DIVIDENDS, DIVISORS = (part.flatten() for part in torch.meshgrid(INTEGERS, INTEGERS[2:], indexing="ij"))

Function = Callable[..., Tensor]

UNARY: dict[str, Function] = {
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "erfc": torch.special.erfc,
    "erfcx": torch.special.erfcx,
    "log_ndtr": torch.special.log_ndtr,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "softplus of a threshold": lambda x: functional.softplus(x, 2.0, 5.0),
    "mish": functional.mish,
    "lgamma": torch.lgamma,
    "digamma of positive values": lambda x: torch.digamma(x.abs()),
    "trigamma": lambda x: torch.polygamma(1, x.abs()),
    "polygamma": lambda x: torch.polygamma(3, x.abs().clamp(0.5, 100.0)),
    "erfinv": torch.erfinv,
    "erfinv near 1": lambda x: torch.erfinv((x * 0.0078125).clamp(-0.9999, 0.9999)),
    "ndtri": torch.special.ndtri,
    "entr": torch.special.entr,
    "i0": torch.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "cummax": lambda x: torch.cummax(x, 0).values,
    "cummin": lambda x: torch.cummin(x, 0).values,
    "cumprod": lambda x: torch.cumprod(x[:-3], 0),
    "kthvalue": lambda x: torch.kthvalue(x, 30).values,
    "median": torch.median,
    "nanmedian": torch.nanmedian,
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0, 50.0])),
    "logit": torch.logit,
    "logit with eps": lambda x: torch.logit(x, 1e-6),
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 0),
    "xlogy": lambda x: torch.xlogy(x, x),
    "xlog1py": lambda x: torch.special.xlog1py(x, x),
    "logsumexp": lambda x: torch.logsumexp(x[:-3].reshape(-1, 4), -1),
    "log_softmax": lambda x: functional.log_softmax(x[:-3].reshape(-1, 4), -1),
    "softmax": lambda x: functional.softmax(x[:-3].reshape(-1, 4), -1),
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "signbit": torch.signbit,
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5)),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp from below": lambda x: x.clamp(min=0),
    "clamp from above": lambda x: x.clamp(max=0),
    "relu": torch.relu,
    "nan_to_num": torch.nan_to_num,
    "isnan": torch.isnan,
    "isfinite": torch.isfinite,
    "floor": torch.floor,
    "round": torch.round,
}
# ONNX Runtime's own kernels: right to 1e-6 of the value or absolutely, but not relative to a value near zero.
NATIVE: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    # PyTorch's own gelu of an infinity is NaN or its limit, by the width of the CPU's vectors (torch 2.13).
    "gelu": lambda x: functional.gelu(x.clamp(-1e38, 1e38)),
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": lambda x: functional.celu(x, 0.3),
    "ndtr": torch.special.ndtr,
    "tanhshrink": functional.tanhshrink,
    "hardswish": functional.hardswish,
}
BINARY: dict[str, Function] = {
    "logaddexp": torch.logaddexp,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "copysign": torch.copysign,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "xlogy of two": torch.xlogy,
    "floor_divide": torch.floor_divide,
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "floor_divide by a number": lambda a, b: a // 0.1 + b * 0,
    "remainder by a number": lambda a, b: a % -0.3 + b * 0,
    "heaviside of two": torch.heaviside,
    "pow": torch.pow,
    "bce": lambda a, b: functional.binary_cross_entropy(_probability(a), _probability(b), reduction="none"),
    "soft margin": lambda a, b: functional.soft_margin_loss(a, b, reduction="none"),
    "kl_div": lambda a, b: functional.kl_div(a, b.clamp(min=0), reduction="none"),
    "kl_div of logarithms": lambda a, b: functional.kl_div(a, b, reduction="none", log_target=True),
}
LOSSES: dict[str, Function] = {
    "logaddexp2": torch.logaddexp2,
    "bce with logits": lambda a, b: functional.binary_cross_entropy_with_logits(a, b, reduction="none"),
    "bce with weights": lambda a, b: functional.binary_cross_entropy_with_logits(
        a, b, weight=torch.tensor(2.0), pos_weight=torch.tensor(3.0), reduction="none"
    ),
    "cross_entropy": lambda a, b: functional.cross_entropy(_rows(a), _classes(a), reduction="none"),
    "cross_entropy smooth": lambda a, b: functional.cross_entropy(_rows(a), _classes(a), label_smoothing=0.1),
    "cross_entropy of shares": lambda a, b: functional.cross_entropy(_rows(a), _rows(b).softmax(-1)),
    "cross_entropy weighted": lambda a, b: functional.cross_entropy(
        _rows(a), _classes(a), weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), ignore_index=2
    ),
    "bce mean": lambda a, b: functional.binary_cross_entropy_with_logits(a[:200], b[:200].clamp(0, 1)),
}
INTEGER: dict[str, Function] = {
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "div trunc by a number": lambda a, b: torch.div(a, -4, rounding_mode="trunc"),
    "floor_divide": lambda a, b: a // b,
    "floor_divide by a number": lambda a, b: a // -4,
    "floor_divide of int32": lambda a, b: (a % 2**31).int() // (b % 7 + 1).int(),
    "remainder": lambda a, b: a % b,
    "fmod": torch.fmod,
    "subtract": lambda a, b: torch.sub(a, b, alpha=3),
    "multiply": lambda a, b: a * b,
    "add": lambda a, b: a + (2**53 + 1),
    "cumsum": lambda a, b: a.cumsum(0),
    "amax": lambda a, b: a.amax(0),
    "maximum": torch.maximum,
    "less": lambda a, b: a < b,
    "equal": lambda a, b: a == b,
    "abs": lambda a, b: a.abs(),
    "sign": lambda a, b: a.sign(),
    "relu": lambda a, b: a.relu(),
    "clamp": lambda a, b: a.clamp(-3, 2**53 + 1),
    "isnan": lambda a, b: torch.isnan(a),
    "bitwise and": torch.bitwise_and,
    "bitwise or": torch.bitwise_or,
    "bitwise xor": torch.bitwise_xor,
    "bitwise and of a number": lambda a, b: a & 6,
    "bitwise not": lambda a, b: ~a,
    "shift left": lambda a, b: a << 3,
    "shift right": lambda a, b: a >> 3,
    "isinf": lambda a, b: torch.isinf(a),
    "ceil": lambda a, b: torch.ceil(a),
    "floor": lambda a, b: torch.floor(a),
    "round": lambda a, b: torch.round(a),
    "trunc": lambda a, b: torch.trunc(a),
}


def _probability(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, 0.5).clamp(0, 1)


def _rows(x: Tensor) -> Tensor:
    """Groups of four finite values."""
    return torch.nan_to_num(x[:1000], 0.5, 1e4, -1e4).clamp(-1e4, 1e4).reshape(-1, 4)


def _classes(x: Tensor) -> Tensor:
    return torch.arange(250, device=x.device) % 4


class _All(nn.Module):
    """Every function of a table, on the same inputs."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {name: function(a, b) for name, function in self.functions.items()}


def _of_one(functions: Mapping[str, Function]) -> dict[str, Function]:
    """Functions that leave their second argument alone."""

    def wrapped(function: Function) -> Function:
        return lambda a, b: function(a)

    return {name: wrapped(function) for name, function in functions.items()}


def _differences(functions: Mapping[str, Function], a: Tensor, b: Tensor, atol: float) -> list[str]:
    """The operators that answer otherwise, each with the first value at which it does."""
    model = _All(functions)
    artifact, _ = exported(model, (a, b))
    answers = OrtSession(artifact.onnx_path)({"a": a.numpy(), "b": b.numpy()})
    wrong: list[str] = []
    for name, right in model(a, b).items():
        found = torch.from_numpy(np.asarray(answers[name]))
        assert found.dtype == right.dtype and found.shape == right.shape, name
        far = ~torch.isclose(found, right, rtol=3e-6, atol=atol, equal_nan=True)
        if far.any():
            index = int(far.flatten().nonzero()[0])
            wrong.append(f"{name}[{index}]: {found.flatten()[index]}, PyTorch {right.flatten()[index]}")
    return wrong


@pytest.mark.parametrize(
    ("functions", "a", "b", "atol"),
    [
        (_of_one(UNARY), VALUES, VALUES, 1e-24),
        (_of_one(NATIVE), VALUES, VALUES, 1e-6),
        (BINARY, LEFT, RIGHT, 1e-24),
        (LOSSES, LEFT, RIGHT, 1e-6),
        (INTEGER, DIVIDENDS, DIVISORS, 0.0),
    ],
    ids=["unary", "native", "binary", "losses", "integer"],
)
def test_operators_are_right_at_extreme_values(
    functions: Mapping[str, Function], a: Tensor, b: Tensor, atol: float
) -> None:
    """No operator answers otherwise than PyTorch."""
    assert _differences(functions, a, b, atol) == []
