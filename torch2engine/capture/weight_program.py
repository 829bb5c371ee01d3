"""How an ONNX graph's weights follow from a module's parameters and buffers, as a stored program.

Enters: a live module, on any device. Leaves: the tensors that an export of it would hold, on that device, without an
export. Separate because a refit repeats this part of an export and no other.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch2engine.capture.refit_operators import READ_SIZES, WEIGHT_OPERATORS, Attributes, apply_to_many
from torch2engine.capture.torch_types import dtype_name, real_form, torch_dtype
from torch2engine.core.errors import ArtifactError, RefitError

__all__ = ["WEIGHT_OPERATORS", "WeightProgram", "WeightStep"]

_VERSION = 1


@dataclass(frozen=True)
class WeightStep:
    """One operator of a weight program.

    Args:
        op: ONNX's name, or one of `WEIGHT_OPERATORS` beside ONNX's.
        inputs: names of values; "" for one that is left out.
        output: name of the value that it computes.
        attributes: ONNX's.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes = field(default_factory=dict[str, Any])

    def to_json(self) -> list[Any]:
        attributes = {name: _encode_attribute(value) for name, value in self.attributes.items()}
        return [self.op, list(self.inputs), self.output, attributes]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> WeightStep:
        op, inputs, output, attributes = data
        decoded = {name: _decode_attribute(name, value) for name, value in attributes.items()}
        return cls(op, tuple(inputs), output, decoded)


@dataclass(frozen=True)
class WeightProgram:
    """The part of an exported ONNX graph that depends on parameters and buffers alone.

    Args:
        sources: path of a parameter or buffer -> (shape, dtype) that it must have. The steps read a complex one as real
            and imaginary parts along a last dimension, as the ONNX graph holds it.
        shared: groups of paths that must be one tensor.
        constants: value name -> tensor on the CPU that no parameter decides, such as the bounds of a slice.
        steps: in the order in which they are computed.
        weights: name of a weight in the ONNX graph -> name of its value in this program.
        fixed: names of the ONNX graph's weights that follow from no parameter or buffer: numbers in the code, and
            tensors that no module has registered.
        fingerprint: path of each source -> fingerprint of the values that the ONNX graph, or its engine, holds.
        parameters: paths of all parameters that the module had; None if they were not recorded.
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
        """The module's parameters and buffers that decide the weights, by path, as they are: not copied.

        Raises:
            RefitError: one is missing, has another shape or dtype, has no values, or is no longer tied to the same
                other tensor. Or there is a new parameter.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        live = parameters | dict(model.named_buffers(remove_duplicate=False))
        for path, (shape, dtype) in self.sources.items():
            _check_source(path, live.get(path), shape, dtype)
        self._check_no_new_parameter(parameters)
        self._check_still_shared(live)
        return {path: live[path].detach() for path in self.sources}

    def _check_no_new_parameter(self, parameters: Mapping[str, torch.Tensor]) -> None:
        if self.parameters is None:
            return
        new = sorted(parameters.keys() - set(self.parameters))
        if new:
            raise RefitError(
                ", ".join(f"'{path}'" for path in new[:8]),
                got="a new parameter",
                allowed="the structure that was deployed",
                fix="deploy the model again",
            )

    def _check_still_shared(self, live: Mapping[str, torch.Tensor]) -> None:
        for group in self.shared:
            if len({id(live.get(path)) for path in group}) > 1:
                raise RefitError(
                    " and ".join(f"'{path}'" for path in group),
                    got="different tensors",
                    allowed="one tensor, as they were deployed",
                    fix="tie them again, or deploy the model again",
                )

    @torch.no_grad()
    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the weights.

        Args:
            tensors: from `tensors`, all on one device.

        Returns:
            name of a weight in the ONNX graph -> tensor there, contiguous; it may share memory with a parameter.
        """
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        values = {path: real_form(tensor) for path, tensor in tensors.items()}
        for steps in self._batches:
            inputs = [self._inputs_of(step, values, device) for step in steps]
            results = apply_to_many(steps[0].op, inputs, steps[0].attributes)
            values |= zip((step.output for step in steps), results, strict=True)
        return {name: values[value].contiguous() for name, value in self.weights.items()}

    def sources_of(self, weight: str) -> set[str]:
        """The paths of the parameters and buffers that decide a weight."""
        step_of = {step.output: step for step in self.steps}
        paths: set[str] = set()
        unvisited = [self.weights[weight]]
        while unvisited:
            value = unvisited.pop()
            if value in self.sources:
                paths.add(value)
            elif value in step_of:
                unvisited += [name for name in step_of[value].inputs if name]
        return paths

    @cached_property
    def _batches(self) -> list[list[WeightStep]]:
        """Steps with the same operator and attributes as one group, in an order in which they can be computed."""
        depths: dict[str, int] = {}
        batches: dict[tuple[int, str, str], list[WeightStep]] = {}
        for step in self.steps:
            depth = 1 + max((depths.get(name, 0) for name in step.inputs), default=0)
            depths[step.output] = depth
            batches.setdefault((depth, step.op, repr(sorted(step.attributes.items()))), []).append(step)
        return [batches[key] for key in sorted(batches, key=lambda key: key[0])]

    def _inputs_of(
        self, step: WeightStep, values: Mapping[str, torch.Tensor], device: torch.device
    ) -> list[torch.Tensor | None]:
        # Sizes and axes are read as numbers, and on the CPU that needs no copy from the GPU.
        reads_sizes = step.op in READ_SIZES
        inputs: list[torch.Tensor | None] = []
        for index, name in enumerate(step.inputs):
            if not name:
                inputs.append(None)
            elif name in values:
                inputs.append(values[name])
            else:
                constant = self.constants[name]
                inputs.append(constant if reads_sizes and index > 0 else constant.to(device))
        return inputs

    def to_json(self) -> bytes:
        """The program as a file's bytes."""
        data = {
            "version": _VERSION,
            "sources": {path: [list(shape), dtype_name(dtype)] for path, (shape, dtype) in self.sources.items()},
            "shared": [list(group) for group in self.shared],
            "constants": {name: _encode_tensor(tensor) for name, tensor in self.constants.items()},
            "steps": [step.to_json() for step in self.steps],
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
            fields: dict[str, Any] = json.loads(data)
            if fields["version"] != _VERSION:
                raise ArtifactError(
                    "weight program",
                    got=f"version {fields['version']}",
                    allowed=f"{_VERSION}, which this torch2engine reads",
                    fix="deploy the model again",
                )
            steps = tuple(WeightStep.from_json(step) for step in fields["steps"])
            if unknown := {step.op for step in steps} - WEIGHT_OPERATORS.keys():
                raise ValueError(f"{sorted(unknown)} are no operators of it")
            parameters = fields["parameters"]
            return cls(
                sources={path: (tuple(shape), torch_dtype(name)) for path, (shape, name) in fields["sources"].items()},
                shared=tuple(tuple(group) for group in fields["shared"]),
                constants={name: _decode_tensor(encoded) for name, encoded in fields["constants"].items()},
                steps=steps,
                weights=fields["weights"],
                fixed=tuple(fields["fixed"]),
                fingerprint=fields["fingerprint"],
                parameters=None if parameters is None else tuple(parameters),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ArtifactError(
                "weight program",
                got=f"bytes that can't be read ({error})",
                allowed="those that were saved",
                fix="deploy again",
            ) from error


def _check_source(path: str, tensor: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a parameter or buffer from which the weights can no longer be computed."""
    if tensor is None:
        raise RefitError(
            f"'{path}'",
            got="no such parameter or buffer",
            allowed="the structure that was deployed",
            fix="pass the module inside, if this one wraps it, or deploy the model again",
        )
    if tensor.is_meta:
        raise RefitError(
            f"'{path}'",
            got="a tensor on the meta device, without values",
            allowed="a tensor with values, on the CPU or a GPU",
            fix="load its values",
        )
    if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
        raise RefitError(
            f"'{path}'",
            got=f"{tensor.dtype} {list(tensor.shape)}",
            allowed=f"{dtype} {list(shape)}, as it was deployed",
            fix="deploy the model again",
        )


def _encode_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "data": base64.b64encode(raw).decode("ascii"),
    }


def _decode_tensor(encoded: Mapping[str, Any]) -> torch.Tensor:
    raw = bytearray(base64.b64decode(encoded["data"], validate=True))
    dtype = torch_dtype(encoded["dtype"])
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(encoded["shape"])


def _encode_attribute(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    return [*value] if type(value) is tuple else value


def _decode_attribute(name: str, value: Any) -> Any:
    if name == "to":  # of Cast
        return torch_dtype(value)
    return (*value,) if type(value) is list else value
