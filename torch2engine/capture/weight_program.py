"""How a graph's weights follow from a module's parameters and buffers, kept so that it can be worked out again.

Enters: a live module, on any device. Leaves: the tensors that an export of it would hold, on that device, without an
export. A room of its own because this is all that a refit needs of the road to ONNX.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.capture.weight_operators import READ_SIZES, WEIGHT_OPERATORS, Attributes, apply_to_many
from torch2engine.core.errors import ArtifactError, RefitError

__all__ = ["WEIGHT_OPERATORS", "WeightProgram", "WeightStep"]

_VERSION = 1


@dataclass(frozen=True)
class WeightStep:
    """One operator of a weight program.

    Args:
        op: ONNX's name, or one of `WEIGHT_OPERATORS` beside ONNX's.
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
    steps: tuple[WeightStep, ...]
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
        for group in self._groups:
            inputs = [self._inputs(step, values, device) for step in group]
            answers = apply_to_many(group[0].op, inputs, group[0].attributes)
            values |= zip((step.output for step in group), answers, strict=True)
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

    @cached_property
    def _groups(self) -> list[list[WeightStep]]:
        """The steps, in an order in which they can be worked out, those of one operator and attributes together."""
        depths: dict[str, int] = {}
        groups: dict[tuple[int, str, str], list[WeightStep]] = {}
        for step in self.steps:
            depth = depths[step.output] = 1 + max((depths.get(name, 0) for name in step.inputs), default=0)
            groups.setdefault((depth, step.op, repr(sorted(step.attributes.items()))), []).append(step)
        return [groups[key] for key in sorted(groups, key=lambda key: key[0])]

    def _inputs(self, step: WeightStep, values: Mapping[str, torch.Tensor], device: torch.device) -> list[Any]:
        # Sizes and axes behind the data are read as numbers, which takes no trip to the GPU where they stay here.
        reads = step.op in READ_SIZES
        found: list[Any] = []
        for index, name in enumerate(step.inputs):
            if name and name not in values:
                constant = self.constants[name]
                found.append(constant if reads and index > 0 else constant.to(device))
            else:
                found.append(values[name] if name else None)
        return found

    def to_json(self) -> bytes:
        """The program as a file's bytes."""
        data = {
            "version": _VERSION,
            "sources": {path: [list(shape), dtype_name(dtype)] for path, (shape, dtype) in self.sources.items()},
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
                WeightStep(
                    op, tuple(inputs), output, {key: _attribute(key, value) for key, value in attributes.items()}
                )
                for op, inputs, output, attributes in found["steps"]
            ]
            if unknown := {step.op for step in steps} - WEIGHT_OPERATORS.keys():
                raise ValueError(f"{sorted(unknown)} are no operators of it")
            return cls(
                sources={path: (tuple(shape), torch_dtype(word)) for path, (shape, word) in found["sources"].items()},
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


def _packed(tensor: torch.Tensor) -> dict[str, Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "data": base64.b64encode(raw).decode("ascii"),
    }


def _unpacked(packed: Mapping[str, Any]) -> torch.Tensor:
    raw, dtype = bytearray(base64.b64decode(packed["data"], validate=True)), torch_dtype(packed["dtype"])
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(packed["shape"])


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _attribute(name: str, value: Any) -> Any:
    if name == "to":
        return torch_dtype(value)
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
