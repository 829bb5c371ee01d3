"""How a graph's weights follow from a module's parameters and buffers, kept so that it can be worked out again.

Enters: a live module, on any device. Leaves: the tensors that an export of it would hold, on that device, without an
export. A room of its own because this is all that a refit needs of the road to ONNX.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn import functional

from torch2engine.errors import ArtifactError, RefitError

__all__ = ["OPERATORS", "Step", "WeightProgram"]

_VERSION = 1

Tensors: TypeAlias = "Sequence[torch.Tensor]"
Attributes: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True)
class Step:
    """One operator of a weight program.

    Args:
        op: ONNX's name, or one of `OPERATORS` beside ONNX's.
        inputs: names of values; "" for one that is left out.
        output: name of the value that it makes.
        attributes: ONNX's.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class WeightProgram:
    """The part of an exported graph that depends on parameters and buffers alone.

    Args:
        sources: path of a parameter or buffer -> (shape, dtype) that it must have.
        shared: groups of paths that must be one tensor.
        constants: value name -> tensor on the CPU that no parameter decides, such as the bounds of a slice.
        steps: in the order in which they are worked out.
        weights: name of a weight in the graph -> name of the value that it is.
        fixed: names of the graph's weights that follow from no parameter or buffer: numbers in the code, and tensors
            that no module has registered.
        fingerprint: path of each source -> number of the values that the graph, or its engine, holds.
        parameters: paths of all parameters that the module had; None if nobody wrote them down.
    """

    sources: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    shared: tuple[tuple[str, ...], ...]
    constants: Mapping[str, torch.Tensor]
    steps: tuple[Step, ...]
    weights: Mapping[str, str]
    fixed: tuple[str, ...]
    fingerprint: Mapping[str, int] = field(default_factory=dict[str, int])
    parameters: tuple[str, ...] | None = None

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The module's parameters and buffers that count, by path, as they are: not copied.

        Raises:
            RefitError: one is missing, has another shape or dtype, has no values, or is no longer the tensor that it
                was one with; or there is a new parameter.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        live = parameters | dict(model.named_buffers(remove_duplicate=False))
        for path, (shape, dtype) in self.sources.items():
            tensor = live.get(path)
            if tensor is None:
                raise RefitError(
                    f"'{path}'",
                    got="the model has it not",
                    allowed="the structure that was deployed",
                    fix="pass the module inside, if this one wraps it, or deploy the model again",
                )
            if tensor.is_meta:
                raise RefitError(
                    f"'{path}'",
                    got="it is on the meta device, without values",
                    allowed="a tensor with values, on the CPU or a GPU",
                    fix="load its values",
                )
            if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
                raise RefitError(
                    f"'{path}'",
                    got=f"is {tensor.dtype} {list(tensor.shape)}",
                    allowed=f"{dtype} {list(shape)}, as it was deployed",
                    fix="deploy the model again",
                )
        if self.parameters is not None and (new := sorted(parameters.keys() - set(self.parameters))):
            raise RefitError(
                ", ".join(f"'{path}'" for path in new[:8]),
                got="a parameter that was not there",
                allowed="the structure that was deployed",
                fix="deploy the model again",
            )
        for group in self.shared:
            if len({id(live.get(path)) for path in group}) > 1:
                raise RefitError(
                    " and ".join(f"'{path}'" for path in group),
                    got="are different tensors now",
                    allowed="one tensor, as they were deployed",
                    fix="tie them again, or deploy the model again",
                )
        return {path: live[path].detach() for path in self.sources}

    @torch.no_grad()
    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Work the weights out.

        Args:
            tensors: from `tensors`, all on one device.

        Returns:
            name of a weight in the graph -> tensor there, contiguous; it may share memory with a parameter.
        """
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        values = dict(tensors)
        for step in self.steps:
            # Sizes and axes behind the data are read as numbers, which takes no trip to the GPU where they stay here.
            here = [index > 0 and step.op in _READ_SIZES for index in range(len(step.inputs))]
            inputs = [self._value(*one, values, device) for one in zip(step.inputs, here, strict=True)]
            values[step.output] = OPERATORS[step.op](inputs, step.attributes)
        return {name: values[value].contiguous() for name, value in self.weights.items()}

    def sources_of(self, weight: str) -> set[str]:
        """The paths that a weight follows from."""
        makers = {step.output: step for step in self.steps}
        found: set[str] = set()
        waiting = [self.weights[weight]]
        while waiting:
            value = waiting.pop()
            if value in self.sources:
                found.add(value)
            elif value in makers:
                waiting += [name for name in makers[value].inputs if name]
        return found

    def _value(self, name: str, stays: bool, values: Mapping[str, torch.Tensor], device: torch.device) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        constant = self.constants[name]
        return constant if stays else constant.to(device)

    def to_json(self) -> bytes:
        """The program as a file's bytes."""
        data = {
            "version": _VERSION,
            "sources": {path: [list(shape), _word(dtype)] for path, (shape, dtype) in self.sources.items()},
            "shared": [list(group) for group in self.shared],
            "constants": {name: _packed(tensor) for name, tensor in self.constants.items()},
            "steps": [
                [
                    step.op,
                    list(step.inputs),
                    step.output,
                    {key: _plain(value) for key, value in step.attributes.items()},
                ]
                for step in self.steps
            ],
            "weights": dict(self.weights),
            "fixed": list(self.fixed),
            "fingerprint": dict(self.fingerprint),
            "parameters": None if self.parameters is None else list(self.parameters),
        }
        return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> WeightProgram:
        """The inverse of `to_json`.

        Raises:
            ArtifactError: of another version, or no such program.
        """
        try:
            found: dict[str, Any] = json.loads(data)
            if found["version"] != _VERSION:
                raise ArtifactError(
                    "weight program",
                    got=f"its version is {found['version']}",
                    allowed=f"this torch2engine reads {_VERSION}",
                    fix="deploy the model again",
                )
            steps = [
                Step(op, tuple(inputs), output, {key: _attribute(key, value) for key, value in attributes.items()})
                for op, inputs, output, attributes in found["steps"]
            ]
            if unknown := {step.op for step in steps} - OPERATORS.keys():
                raise ValueError(f"{sorted(unknown)} are no operators of it")
            return cls(
                sources={path: (tuple(shape), _dtype(word)) for path, (shape, word) in found["sources"].items()},
                shared=tuple(tuple(group) for group in found["shared"]),
                constants={name: _unpacked(packed) for name, packed in found["constants"].items()},
                steps=tuple(steps),
                weights=found["weights"],
                fixed=tuple(found["fixed"]),
                fingerprint=found["fingerprint"],
                parameters=None if found["parameters"] is None else tuple(found["parameters"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ArtifactError("weight program", got=f"it can't be read ({error})", fix="deploy again") from error


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(word: str) -> torch.dtype:
    found = getattr(torch, word)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{word!r} is no dtype")
    return found


def _packed(tensor: torch.Tensor) -> dict[str, Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {"shape": list(tensor.shape), "dtype": _word(tensor.dtype), "data": base64.b64encode(raw).decode("ascii")}


def _unpacked(packed: Mapping[str, Any]) -> torch.Tensor:
    raw, dtype = bytearray(base64.b64decode(packed["data"], validate=True)), _dtype(packed["dtype"])
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(packed["shape"])


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _word(value)
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _attribute(name: str, value: Any) -> Any:
    if name == "to":
        return _dtype(value)
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


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
        return function(x[0], tuple(range(x[0].ndim)) if axes is None else tuple(axes), _keep(attributes))

    return reduce


def _norm(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    return x.square().sum(axes, keep).sqrt()


def _each(function: Callable[..., torch.Tensor]) -> Callable[[Tensors, Attributes], torch.Tensor]:
    return lambda x, _: function(*x)


def _scale(gamma: torch.Tensor, variance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """BatchNorm's factor, in float32 at least."""
    wide = torch.promote_types(gamma.dtype, torch.float32)
    return gamma.to(wide) / torch.sqrt(variance.to(wide) + epsilon)


def _norm_scale(x: Tensors, attributes: Attributes) -> torch.Tensor:
    """BatchNorm's factor in the model's own type: gamma, variance."""
    return _scale(x[0], x[1], attributes["epsilon"]).to(x[0].dtype)


def _fold_weight(x: Tensors, attributes: Attributes) -> torch.Tensor:
    """A convolution's weight with BatchNorm's factor in it: weight, gamma, variance."""
    weight, gamma, variance = x
    scale = _scale(gamma, variance, attributes["epsilon"])
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
    large = functional.hardshrink(given, least - 2.0**-48)  # float32's next smaller one; few kernels, of many weights
    return large.add(given.ne(large), alpha=least).to(torch.float16)


def _gather(x: Tensors, attributes: Attributes) -> torch.Tensor:
    data, indices = x
    axis = attributes.get("axis", 0) % data.ndim
    chosen = data.index_select(axis, cast("torch.Tensor", indices % data.shape[axis]).reshape(-1).to(data.device))
    return chosen.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


# What programs may consist of: ONNX's operators, in opset 22, the folding of BatchNorm, and AutoCast's rounding.
OPERATORS: dict[str, Callable[[Tensors, Attributes], torch.Tensor]] = {
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "Cast": lambda x, attributes: x[0].to(attributes["to"]),
    "Concat": lambda x, attributes: torch.cat(list(x), attributes["axis"]),
    "Cos": _each(torch.cos),
    "Div": _each(torch.div),
    "Exp": _each(torch.exp),
    "Expand": lambda x, _: x[0] * torch.ones(_ints(x[1]) or [], dtype=x[0].dtype, device=x[0].device),
    "Gather": _gather,
    "Identity": lambda x, _: x[0],
    "Log": _each(torch.log),
    "MatMul": _each(torch.matmul),
    "Mul": _each(torch.mul),
    "Neg": _each(torch.neg),
    "Pow": _each(torch.pow),
    "Reciprocal": _each(torch.reciprocal),
    "ReduceL2": _reduce(_norm),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _each(torch.sigmoid),
    "Sin": _each(torch.sin),
    "Slice": _slice,
    "Softplus": _each(nn.functional.softplus),
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(torch.sub),
    "Tanh": _each(torch.tanh),
    "Transpose": lambda x, attributes: x[0].permute(attributes.get("perm", tuple(range(x[0].ndim))[::-1])),
    "Unsqueeze": _unsqueeze,
    "FoldedWeight": _fold_weight,
    "FoldedBias": _fold_bias,
    "NormScale": _norm_scale,
    "CastHalf": _cast_half,
}
_READ_SIZES = frozenset(
    {"Expand", "Gather", "ReduceL2", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
