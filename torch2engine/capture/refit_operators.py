"""The operators of weight programs: ONNX's on a module's tensors, the folding of BatchNorm, and AutoCast's rounding.

Enters: tensors on one device. Leaves: the same values on every device, to the last bit. Square roots, exponentials and
sums of a CPU and a GPU differ in float32's last digit: MKL's square root is off by one in 0.6 % of cases. One weight
that is rounded to another half changes an engine's answers by 1e-3. So what IEEE 754 does not define is computed in
float64, and then rounded. Separate from `weight_program`, which stores programs and runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.nn import functional

__all__ = ["READ_SIZES", "WEIGHT_OPERATORS", "Attributes", "OperatorInputs", "apply_to_many"]

OperatorInputs: TypeAlias = "Sequence[Any]"  # tensors, and None in the place of an optional input that is left out
Attributes: TypeAlias = "Mapping[str, Any]"
Operator: TypeAlias = "Callable[[OperatorInputs, Attributes], torch.Tensor]"

_SMALL_SIZE = 1 << 20  # elements; the work on more takes longer than a launch
_LARGEST_BATCH = 1 << 24  # elements, in 64 MiB
_ALIGNMENT = 128  # elements; of halves 256 bytes, as PyTorch aligns its own tensors at least


def _int_list(tensor: torch.Tensor) -> list[int]:
    return [int(value) for value in tensor.reshape(-1)]


def _optional_ints(inputs: OperatorInputs, index: int) -> list[int] | None:
    """The numbers of an optional input; None if it is left out."""
    if index >= len(inputs) or inputs[index] is None:
        return None
    return _int_list(inputs[index])


def _slice(inputs: OperatorInputs, _: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    starts = _int_list(inputs[1])
    ends = _int_list(inputs[2])
    axes = _optional_ints(inputs, 3) or list(range(len(starts)))
    steps = _optional_ints(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        indices = range(data.shape[axis])[slice(start, end, step)]  # ONNX's bounds are Python's
        data = data.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=data.device))
    return data


def _reshape(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    sizes = _int_list(inputs[1])
    if not attributes.get("allowzero", 0):  # then 0 means the size that the data has there
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return data.reshape(sizes)


def _unsqueeze(inputs: OperatorInputs, _: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    axes = _int_list(inputs[1])
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _squeeze(inputs: OperatorInputs, _: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    axes = _optional_ints(inputs, 1)
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _expand(inputs: OperatorInputs, _: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    return data * torch.ones(_int_list(inputs[1]), dtype=data.dtype, device=data.device)


def _transpose(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    return data.permute(attributes.get("perm", tuple(range(data.ndim))[::-1]))


def _gather(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    data: torch.Tensor = inputs[0]
    indices: torch.Tensor = inputs[1]
    axis: int = attributes.get("axis", 0) % data.ndim
    from_front = torch.remainder(indices, data.shape[axis])  # ONNX counts negative ones from the end
    gathered = data.index_select(axis, from_front.reshape(-1).to(data.device))
    return gathered.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def _elementwise(function: Callable[..., torch.Tensor]) -> Operator:
    """A function that IEEE 754 decides to the last bit."""
    return lambda inputs, _: function(*inputs)


def _in_float64(function: Callable[..., torch.Tensor]) -> Operator:
    """A function that devices round in different ways."""
    return lambda inputs, _: function(*[part.double() for part in inputs]).to(inputs[0].dtype)


def _reduction(function: Callable[..., torch.Tensor]) -> Operator:
    """A function over axes, which are all of them if none are given."""

    def reduce(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
        data: torch.Tensor = inputs[0]
        axes = _optional_ints(inputs, 1)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            raise ValueError("a reduction that does nothing")
        over = range(data.ndim) if axes is None else axes
        keeps_axes = bool(attributes.get("keepdims", 1))
        return function(data, tuple(over), keeps_axes, dtype=torch.float64).to(data.dtype)

    return reduce


def _l2_norm(data: torch.Tensor, axes: tuple[int, ...], keepdim: bool, dtype: torch.dtype) -> torch.Tensor:
    return data.to(dtype).square().sum(axes, keepdim).sqrt()


def _batch_norm_scale(gamma: torch.Tensor, variance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """BatchNorm's factor, in float32 at least."""
    dtype = torch.promote_types(gamma.dtype, torch.float32)
    return (gamma / torch.sqrt(variance.double() + epsilon)).to(dtype)


def _norm_scale(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    """BatchNorm's factor in the model's own type: gamma, variance."""
    gamma, variance = inputs
    return _batch_norm_scale(gamma, variance, attributes["epsilon"]).to(gamma.dtype)


def _fold_weight(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    """A convolution's weight with BatchNorm's factor in it: weight, gamma, variance."""
    weight, gamma, variance = inputs
    return _scale_weight(weight, _batch_norm_scale(gamma, variance, attributes["epsilon"]), attributes["axis"])


def _scale_weight(weight: torch.Tensor, scale: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply a weight by one factor for each index of an axis."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return (weight.to(scale.dtype) * scale.reshape(shape)).to(weight.dtype)


def _fold_bias(inputs: OperatorInputs, attributes: Attributes) -> torch.Tensor:
    """A convolution's bias with BatchNorm in it: bias or None, gamma, beta, mean, variance."""
    bias, gamma, beta, mean, variance = inputs
    scale = _batch_norm_scale(gamma, variance, attributes["epsilon"])
    centre: torch.Tensor = mean.to(scale.dtype)
    if bias is not None:
        centre = centre - bias.to(scale.dtype)
    return (beta.to(scale.dtype) - centre * scale).to(beta.dtype)


def _cast_half(inputs: OperatorInputs, _: Attributes) -> torch.Tensor:
    """A float32 tensor in float16 as ModelOpt's AutoCast (0.47) writes it.

    A value that is not zero, but smaller than float16's smallest number, becomes that number, whatever its sign.
    """
    smallest = 2.0**-24
    values: torch.Tensor = inputs[0].float()
    representable = functional.hardshrink(values, smallest - 2.0**-48)  # float32's next smaller number
    return representable.add(values.ne(representable), alpha=smallest).to(torch.float16)


# ONNX's operators are those of opset 22; the last four are not of ONNX.
WEIGHT_OPERATORS: dict[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "Cast": lambda inputs, attributes: inputs[0].to(attributes["to"]),
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "Cos": _in_float64(torch.cos),
    "Div": _elementwise(torch.div),
    "Exp": _in_float64(torch.exp),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": lambda inputs, _: inputs[0],
    "Log": _in_float64(torch.log),
    "MatMul": _in_float64(torch.matmul),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Pow": _in_float64(torch.pow),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceL2": _reduction(_l2_norm),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _in_float64(torch.sigmoid),
    "Sin": _in_float64(torch.sin),
    "Slice": _slice,
    "Softplus": _in_float64(functional.softplus),
    "Sqrt": _in_float64(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Tanh": _in_float64(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "FoldedWeight": _fold_weight,
    "FoldedBias": _fold_bias,
    "NormScale": _norm_scale,
    "CastHalf": _cast_half,
}
# Operators that compute each element by itself, so that many small inputs may be joined into one.
_ELEMENTWISE = frozenset({"CastHalf", "FoldedBias"})
# Operators whose inputs after the first are sizes or axes, read as numbers.
READ_SIZES = frozenset(
    {"Expand", "Gather", "ReduceL2", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)


def apply_to_many(
    operator: str, inputs_of_each: Sequence[OperatorInputs], attributes: Attributes
) -> list[torch.Tensor]:
    """Apply one operator to each of several inputs, with the same bits as in separate calls.

    Networks have hundreds of small weights, and a launch takes longer than the work on one weight. So small ones are
    joined.
    """
    apply = WEIGHT_OPERATORS[operator]
    if operator == "FoldedWeight":
        # The weights differ in shape; the values for each channel do not.
        factors = [(gamma, variance) for _, gamma, variance in inputs_of_each]
        scales = _apply_joined(lambda pair: _batch_norm_scale(pair[0], pair[1], attributes["epsilon"]), factors)
        weights = [weight for weight, _, _ in inputs_of_each]
        return [_scale_weight(weight, scale, attributes["axis"]) for weight, scale in zip(weights, scales, strict=True)]
    if operator in _ELEMENTWISE:
        return _apply_joined(lambda inputs: apply(inputs, attributes), inputs_of_each)
    return [apply(inputs, attributes) for inputs in inputs_of_each]


ElementwiseFunction: TypeAlias = "Callable[[OperatorInputs], torch.Tensor]"


@dataclass
class _Batch:
    """Small inputs of the same dtypes that are joined to one, by their index among all inputs."""

    inputs: dict[int, OperatorInputs] = field(default_factory=dict[int, "OperatorInputs"])
    elements: int = 0


def _apply_joined(function: ElementwiseFunction, inputs_of_each: Sequence[OperatorInputs]) -> list[torch.Tensor]:
    """Apply a function that works element by element, to small inputs joined to one.

    Args:
        function: of inputs whose tensors have one shape.
        inputs_of_each: only the first of an input's tensors may be None.
    """
    results: dict[int, torch.Tensor] = {}
    batches: dict[tuple[torch.dtype | None, ...], _Batch] = {}
    for index, inputs in enumerate(inputs_of_each):
        elements = inputs[-1].numel()
        if elements >= _SMALL_SIZE:
            results[index] = function(inputs)
            continue
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in inputs)
        batch = batches.setdefault(dtypes, _Batch())
        batch.inputs[index] = inputs
        batch.elements += elements
        if batch.elements >= _LARGEST_BATCH:
            results |= _apply_to_batch(function, batches.pop(dtypes).inputs)
    for batch in batches.values():
        results |= _apply_to_batch(function, batch.inputs)
    return [results[index] for index in range(len(inputs_of_each))]


def _apply_to_batch(function: ElementwiseFunction, batch: Mapping[int, OperatorInputs]) -> dict[int, torch.Tensor]:
    if len(batch) == 1:
        return {index: function(inputs) for index, inputs in batch.items()}
    shapes: list[torch.Size] = [inputs[-1].shape for inputs in batch.values()]
    gaps = [-shape.numel() % _ALIGNMENT for shape in shapes]
    joined = function([_join(tensors, gaps) for tensors in zip(*batch.values(), strict=True)])
    sizes = [shape.numel() + gap for shape, gap in zip(shapes, gaps, strict=True)]
    parts: Sequence[torch.Tensor] = torch.split(joined, sizes)
    return {index: _cut_out(part, shape) for index, part, shape in zip(batch, parts, shapes, strict=True)}


def _cut_out(part: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The front of a part, in a shape. A view is made only where it is needed, since that takes time."""
    size = shape.numel()
    values = part if part.numel() == size else part[:size]
    return values if values.shape == shape else values.view(shape)


def _join(tensors: Sequence[torch.Tensor | None], gaps: Sequence[int]) -> torch.Tensor | None:
    """One row of all tensors, with gaps so that each begins at an aligned address; None if all are None."""
    parts: list[torch.Tensor] = []
    zeros: dict[int, torch.Tensor] = {}
    for tensor, gap in zip(tensors, gaps, strict=True):
        if tensor is None:
            return None
        parts.append(tensor if tensor.ndim == 1 else tensor.reshape(-1))
        if gap:
            if gap not in zeros:
                zeros[gap] = tensor.new_zeros(gap)
            parts.append(zeros[gap])
    return torch.cat(parts)
