"""What weight programs may consist of: ONNX's operators on tensors of a module, on any device.

Enters: tensors on one device. Leaves: the same values on every device, to the last bit: a CPU's and a GPU's square
roots, exponentials and sums differ in float32's last digit (MKL's square root is off by one in 0.6 % of cases), and one
weight that is rounded to another half changes an engine's answers by 1e-3. So what IEEE 754 does not settle is worked
out in float64, and then rounded. Beside `weights`, which keeps and runs programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch.nn import functional

__all__ = ["READ_SIZES", "WEIGHT_OPERATORS", "Attributes", "Tensors", "apply_to_many"]

Tensors: TypeAlias = "Sequence[torch.Tensor]"
Attributes: TypeAlias = "Mapping[str, Any]"

_SMALL = 1 << 20  # elements; the work on more takes longer than a launch
_MOST_JOINED = 1 << 24  # elements, in 64 MiB
_ALIGNED = 128  # elements; of halves 256 bytes, as PyTorch aligns its own tensors at least


def _ints(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else [int(value) for value in tensor.reshape(-1)]


def _slice(x: Tensors, _: Attributes) -> torch.Tensor:
    data, *rest = x
    starts, ends, axes, steps = (_ints(part) for part in (*rest, *[None] * (4 - len(rest))))
    assert starts is not None and ends is not None, "ONNX demands both"
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[index] if axes else index, steps[index] if steps else 1
        chosen = range(data.shape[axis])[slice(start, end, step)]  # ONNX's bounds are Python's
        data = data.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=data.device))
    return data


def _reshape(x: Tensors, attributes: Attributes) -> torch.Tensor:
    sizes = _ints(x[1]) or []
    keep = not attributes.get("allowzero", 0)
    return x[0].reshape([x[0].shape[at] if keep and size == 0 else size for at, size in enumerate(sizes)])


def _unsqueeze(x: Tensors, _: Attributes) -> torch.Tensor:
    data, axes = x[0], _ints(x[1]) or []
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _squeeze(x: Tensors, _: Attributes) -> torch.Tensor:
    axes = _ints(x[1]) if len(x) > 1 else None
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def _axes(x: Tensors) -> list[int] | None:
    return _ints(x[1]) if len(x) > 1 else None


def _keep(attributes: Attributes) -> bool:
    return bool(attributes.get("keepdims", 1))


def _reduce(function: Callable[..., torch.Tensor]) -> Callable[[Tensors, Attributes], torch.Tensor]:
    def reduce(x: Tensors, attributes: Attributes) -> torch.Tensor:
        axes = _axes(x)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            raise ValueError("a reduction that does nothing")
        over = tuple(range(x[0].ndim)) if axes is None else tuple(axes)
        return function(x[0], over, _keep(attributes), dtype=torch.float64).to(x[0].dtype)

    return reduce


def _norm(x: torch.Tensor, axes: tuple[int, ...], keep: bool, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype).square().sum(axes, keep).sqrt()


def _each(function: Callable[..., torch.Tensor]) -> Callable[[Tensors, Attributes], torch.Tensor]:
    return lambda x, _: function(*x)


def _wide(function: Callable[..., torch.Tensor]) -> Callable[[Tensors, Attributes], torch.Tensor]:
    """A function that devices round in their own ways."""
    return lambda x, _: function(*[part.double() for part in x]).to(x[0].dtype)


def _scale(gamma: torch.Tensor, variance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """BatchNorm's factor, in float32 at least."""
    wide = torch.promote_types(gamma.dtype, torch.float32)
    return (gamma / torch.sqrt(variance.double() + epsilon)).to(wide)


def _norm_scale(x: Tensors, attributes: Attributes) -> torch.Tensor:
    """BatchNorm's factor in the model's own type: gamma, variance."""
    return _scale(x[0], x[1], attributes["epsilon"]).to(x[0].dtype)


def _fold_weight(x: Tensors, attributes: Attributes) -> torch.Tensor:
    """A convolution's weight with BatchNorm's factor in it: weight, gamma, variance."""
    weight, gamma, variance = x
    return _scaled(weight, _scale(gamma, variance, attributes["epsilon"]), attributes)


def _scaled(weight: torch.Tensor, scale: torch.Tensor, attributes: Attributes) -> torch.Tensor:
    sides = [1] * weight.ndim
    sides[attributes["axis"]] = -1
    return (weight.to(scale.dtype) * scale.reshape(sides)).to(weight.dtype)


def _fold_bias(x: Tensors, attributes: Attributes) -> torch.Tensor:
    """A convolution's bias with BatchNorm in it: bias or None, gamma, beta, mean, variance."""
    gamma, beta, mean, variance = x[1:]
    bias = cast("torch.Tensor | None", x[0])
    scale = _scale(gamma, variance, attributes["epsilon"])
    before = mean.to(scale.dtype) if bias is None else mean.to(scale.dtype) - bias.to(scale.dtype)
    return (beta.to(scale.dtype) - before * scale).to(beta.dtype)


def _cast_half(x: Tensors, _: Attributes) -> torch.Tensor:
    """A float32 tensor in float16 as ModelOpt's AutoCast (0.47) writes it: what is not zero, but less than the least
    number, becomes that number, whatever its sign."""
    least = 2.0**-24
    given = x[0].float()
    large = functional.hardshrink(given, least - 2.0**-48)  # float32's next smaller one
    return large.add(given.ne(large), alpha=least).to(torch.float16)


def _gather(x: Tensors, attributes: Attributes) -> torch.Tensor:
    data, indices = x
    axis = attributes.get("axis", 0) % data.ndim
    chosen = data.index_select(axis, cast("torch.Tensor", indices % data.shape[axis]).reshape(-1).to(data.device))
    return chosen.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


# What programs may consist of: ONNX's operators, in opset 22, the folding of BatchNorm, and AutoCast's rounding.
WEIGHT_OPERATORS: dict[str, Callable[[Tensors, Attributes], torch.Tensor]] = {
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "Cast": lambda x, attributes: x[0].to(attributes["to"]),
    "Concat": lambda x, attributes: torch.cat(list(x), attributes["axis"]),
    "Cos": _wide(torch.cos),
    "Div": _each(torch.div),
    "Exp": _wide(torch.exp),
    "Expand": lambda x, _: x[0] * torch.ones(_ints(x[1]) or [], dtype=x[0].dtype, device=x[0].device),
    "Gather": _gather,
    "Identity": lambda x, _: x[0],
    "Log": _wide(torch.log),
    "MatMul": _wide(torch.matmul),
    "Mul": _each(torch.mul),
    "Neg": _each(torch.neg),
    "Pow": _wide(torch.pow),
    "Reciprocal": _each(torch.reciprocal),
    "ReduceL2": _reduce(_norm),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _wide(torch.sigmoid),
    "Sin": _wide(torch.sin),
    "Slice": _slice,
    "Softplus": _wide(functional.softplus),
    "Sqrt": _wide(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(torch.sub),
    "Tanh": _wide(torch.tanh),
    "Transpose": lambda x, attributes: x[0].permute(attributes.get("perm", tuple(range(x[0].ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
    "FoldedWeight": _fold_weight,
    "FoldedBias": _fold_bias,
    "NormScale": _norm_scale,
    "CastHalf": _cast_half,
}
READ_SIZES = frozenset(
    {"Expand", "Gather", "ReduceL2", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)


def apply_to_many(op: str, inputs: Sequence[Tensors], attributes: Attributes) -> list[torch.Tensor]:
    """The operator's answers to each of several inputs, to the bit as one by one.

    Networks have hundreds of small weights, and a launch takes longer than the work on one.
    """
    operator = WEIGHT_OPERATORS[op]
    if op == "FoldedWeight":
        factors = [(gamma, variance) for _, gamma, variance in inputs]
        scales = _joined(lambda x: _scale(x[0], x[1], attributes["epsilon"]), factors)
        return [_scaled(x[0], scale, attributes) for x, scale in zip(inputs, scales, strict=True)]
    if op in ("FoldedBias", "CastHalf"):
        return _joined(lambda x: operator(x, attributes), inputs)
    return [operator(x, attributes) for x in inputs]


def _joined(function: Callable[[Tensors], torch.Tensor], inputs: Sequence[Tensors]) -> list[torch.Tensor]:
    """A function that works element by element, of inputs whose tensors have one shape: small ones joined to one."""
    found: dict[int, torch.Tensor] = {}
    waiting: dict[tuple[torch.dtype | None, ...], tuple[dict[int, Tensors], int]] = {}
    for index, x in enumerate(inputs):
        size = x[-1].numel()  # the first may be left out
        if size >= _SMALL:
            found[index] = function(x)
            continue
        kind = tuple(part.dtype if part is not None else None for part in cast("Sequence[torch.Tensor | None]", x))
        group, total = waiting.pop(kind, ({}, 0))
        group[index] = x
        if total + size >= _MOST_JOINED:
            found |= _as_one(function, group)
        else:
            waiting[kind] = group, total + size
    for group, _ in waiting.values():
        found |= _as_one(function, group)
    return [found[index] for index in range(len(inputs))]


def _as_one(function: Callable[[Tensors], torch.Tensor], inputs: Mapping[int, Tensors]) -> dict[int, torch.Tensor]:
    if len(inputs) == 1:
        return {index: function(x) for index, x in inputs.items()}
    shapes = [x[-1].shape for x in inputs.values()]
    gaps = [-shape.numel() % _ALIGNED for shape in shapes]
    answer = function([_row(column, gaps) for column in zip(*inputs.values(), strict=True)])
    sizes = [shape.numel() + gap for shape, gap in zip(shapes, gaps, strict=True)]
    found = zip(inputs, cast("Tensors", answer.split(sizes)), shapes, strict=True)
    return {index: _cut(part, shape) for index, part, shape in found}


def _cut(part: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What has the shape from the front; views of what has it already take longer than to look."""
    size = shape.numel()
    whole = part if part.numel() == size else part[:size]
    return whole if whole.shape == shape else whole.view(shape)


def _row(tensors: Tensors, gaps: Sequence[int]) -> Any:
    """One tensor with room behind each, so that what is cut out of it begins where a tensor may; None of Nones."""
    if cast("torch.Tensor | None", tensors[0]) is None:
        return None
    room = {gap: tensors[0].new_zeros(gap) for gap in {*gaps}}
    parts: list[torch.Tensor] = []
    for tensor, gap in zip(tensors, gaps, strict=True):
        parts.append(tensor if tensor.ndim == 1 else tensor.reshape(-1))
        if gap:
            parts.append(room[gap])
    return torch.cat(parts)
