"""The weight program of a graph → that of the same graph in other types.

Enters: a float32 graph with its program, and what a precision made of it. Leaves: a program that gives the typed
graph's weights, each proved on the weights that both graphs hold now. Apart from `weights`, which needs no ONNX.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torch2engine.capture.torch_types import dtype_name
from torch2engine.capture.weight_program import WEIGHT_OPERATORS, WeightProgram, WeightStep
from torch2engine.core.errors import RefitError
from torch2engine.onnx_graph.model_file import load_model

__all__ = ["retyped"]

# AutoCast gives a weight that nodes of two types read a copy for one of them: "weight_1".
_COPY = re.compile(r"(.+)_\d+")


def retyped(program: WeightProgram, before: Path, after: Path) -> WeightProgram:
    """The program of a typed graph.

    Args:
        program: of the graph in `before`.
        before, after: ONNX files; weights of `after` have the names that they have in `before`, or a copy's.

    Raises:
        RefitError: a weight of the typed graph is not the old one in another type, or the typed graph has it no more.
    """
    old = {tensor.name: tensor for tensor in load_model(before).graph.initializer}
    weights: dict[str, str] = {}
    fixed: list[str] = []
    casts: dict[tuple[str, torch.dtype], WeightStep] = {}
    seen: set[str] = set()
    for tensor in load_model(after).graph.initializer:
        name = tensor.name if tensor.name in old else _original(tensor.name, old)
        if name not in program.weights:
            fixed.append(tensor.name)
            continue
        was, now = _tensor(old[name]), _tensor(tensor)
        step = _rounding(program.weights[name], was.dtype, now.dtype)
        rounded = was if step is None else WEIGHT_OPERATORS[step.op]([was], step.attributes)
        if not torch.equal(rounded, now):
            raise _lost(name, "has other values in the typed graph than its own, rounded")
        seen.add(name)
        value = program.weights[name]
        weights[tensor.name] = value if step is None else casts.setdefault((value, now.dtype), step).output
    if missing := [name for name in program.weights if name not in seen]:
        raise _lost(missing[0], "became part of a constant")
    return replace(program, steps=(*program.steps, *casts.values()), weights=weights, fixed=tuple(fixed))


def _rounding(value: str, was: torch.dtype, now: torch.dtype) -> WeightStep | None:
    """What gives a value another type; None where it has it."""
    if was == now:
        return None
    output = f"{value}@{dtype_name(now)}"
    if (was, now) == (torch.float32, torch.float16):
        return WeightStep("CastHalf", (value,), output)
    return WeightStep("Cast", (value,), output, {"to": now})


def _original(name: str, known: Any) -> str:
    match = _COPY.fullmatch(name)
    return match[1] if match and match[1] in known else name


def _tensor(tensor: Any) -> torch.Tensor:
    from onnx import TensorProto, numpy_helper

    array: Any = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _lost(name: str, got: str) -> RefitError:
    return RefitError(
        f"weight '{name}'",
        got=got,
        allowed="weights that can be followed from the module into the engine",
        fix="build without BuildConfig(refittable=True), or deploy model.half() instead of lowering its graph",
    )
