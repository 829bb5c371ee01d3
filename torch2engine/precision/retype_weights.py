"""The weight program of a graph → that of the same graph in other types.

Enters: a float32 graph with its program, and the same graph in a low precision. Leaves: a program that gives the typed
graph's weights. Each step is proved on the present weights of both graphs. Separate from the program itself, which
needs no ONNX.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.capture.weight_program import WEIGHT_OPERATORS, WeightProgram, WeightStep
from torch2engine.core.constants import NOT_IN_NUMPY
from torch2engine.core.errors import RefitError
from torch2engine.onnx_graph.model_file import load_model

__all__ = ["retype_weight_program"]

# AutoCast gives a weight that nodes of two types read a copy for one of them: "weight_1".
_COPY = re.compile(r"(.+)_\d+")


def retype_weight_program(program: WeightProgram, before: Path, after: Path) -> WeightProgram:
    """Make the weight program of a typed graph.

    Args:
        program: of the graph in `before`.
        before: the float32 ONNX file.
        after: the typed ONNX file; its weights have the names of those in `before`, or of copies.

    Raises:
        RefitError: a weight of the typed graph is not the float32 one in another type, or is missing in it.
    """
    float32_weights = {tensor.name: tensor for tensor in load_model(before).graph.initializer}
    value_of_weight: dict[str, str] = {}
    fixed: list[str] = []
    casts: dict[tuple[str, torch.dtype], WeightStep] = {}
    retyped: set[str] = set()
    for tensor in load_model(after).graph.initializer:
        name = tensor.name if tensor.name in float32_weights else _name_of_original(tensor.name, float32_weights)
        if name not in program.weights:
            fixed.append(tensor.name)
            continue
        float32 = _tensor(float32_weights[name])
        typed = _tensor(tensor)
        value = program.weights[name]
        step = _cast_step(value, float32.dtype, typed.dtype)
        rounded = float32 if step is None else WEIGHT_OPERATORS[step.op]([float32], step.attributes)
        if not torch.equal(rounded, typed):
            raise _lost(name, "other values in the typed graph than its own, rounded")
        retyped.add(name)
        value_of_weight[tensor.name] = value if step is None else casts.setdefault((value, typed.dtype), step).output
    if missing := [name for name in program.weights if name not in retyped]:
        raise _lost(missing[0], "a part of a constant")
    steps = (*program.steps, *casts.values())
    return replace(program, steps=steps, weights=value_of_weight, fixed=tuple(fixed))


def _cast_step(value: str, source: torch.dtype, target: torch.dtype) -> WeightStep | None:
    """Make the step that gives a value another type; None if it has that type."""
    if source == target:
        return None
    output = f"{value}@{dtype_name(target)}"
    if (source, target) == (torch.float32, torch.float16):
        return WeightStep("CastHalf", (value,), output)
    return WeightStep("Cast", (value,), output, {"to": target})


def _name_of_original(name: str, known: Container[str]) -> str:
    """Find the weight of which this name is a copy."""
    match = _COPY.fullmatch(name)
    return match[1] if match and match[1] in known else name


def _tensor(tensor: Any) -> torch.Tensor:
    from onnx import numpy_helper

    array: Any = numpy_helper.to_array(tensor)
    name = str(array.dtype.name)
    if name in NOT_IN_NUMPY:  # torch takes their bits as integers
        return torch.from_numpy(array.view(f"int{8 * array.itemsize}").copy()).view(torch_dtype(name))
    return torch.from_numpy(array.copy())


def _lost(name: str, got: str) -> RefitError:
    return RefitError(
        f"weight '{name}'",
        got=got,
        allowed="weights that can be followed from the module into the engine",
        fix="build without BuildConfig(refittable=True), or deploy model.half() instead of lowering its graph",
    )
