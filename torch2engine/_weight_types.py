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

from torch2engine.errors import RefitError
from torch2engine.precision._model import load
from torch2engine.weights import Step, WeightProgram

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
    old = {tensor.name: tensor for tensor in load(before).graph.initializer}
    weights: dict[str, str] = {}
    fixed: list[str] = []
    casts: dict[tuple[str, torch.dtype], Step] = {}
    seen: set[str] = set()
    for tensor in load(after).graph.initializer:
        name = tensor.name if tensor.name in old else _original(tensor.name, old)
        if name not in program.weights:
            fixed.append(tensor.name)
            continue
        was, now = _tensor(old[name]), _tensor(tensor)
        if was.shape != now.shape or not _same(was, now):
            raise _lost(name, "has other values in the typed graph than its own, rounded")
        seen.add(name)
        value = program.weights[name]
        if was.dtype != now.dtype:
            step = Step("Cast", (value,), f"{value}@{str(now.dtype).removeprefix('torch.')}", {"to": now.dtype})
            value = casts.setdefault((value, now.dtype), step).output
        weights[tensor.name] = value
    if missing := [name for name in program.weights if name not in seen]:
        raise _lost(missing[0], "became part of a constant")
    return replace(program, steps=(*program.steps, *casts.values()), weights=weights, fixed=tuple(fixed))


def _same(was: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether a tensor is another one, rounded; AutoCast makes the least positive number of all that are too small."""
    rounded = was.to(now.dtype)
    if torch.equal(rounded, now) or not now.is_floating_point():
        return torch.equal(rounded, now)
    limits = torch.finfo(now.dtype)
    least = limits.smallest_normal * limits.eps
    return torch.allclose(rounded.double(), now.double(), rtol=0.0, atol=2 * least)


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
