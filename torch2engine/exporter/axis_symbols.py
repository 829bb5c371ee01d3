"""torch's symbols for dynamic dimensions ↔ the user's axes, and the outputs' shapes in axis names.

Enters: torch's program and the signature. Leaves: the axis of each symbol, and the outputs' shapes in axis names.
Separate because ONNX shows the user's names to people, and torch has names of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.exporter.sizes.size_conditions import axis_symbol, dim_in_axes, in_axes
from torch2engine.exporter.trace import TracedCall

__all__ = ["check_output_axes", "find_axis_symbols", "output_specs"]


def find_axis_symbols(traced: TracedCall) -> dict[str, str]:
    """Find the axis, or the expression over axes, of each of torch's symbols, as text for the ONNX graph."""
    dims = traced.guards.axis_of_symbol
    return {symbol: dim if dim.isidentifier() else f"({dim})" for symbol, dim in dims.items()}


def output_specs(traced: TracedCall, signature: Signature) -> tuple[TensorSpec, ...]:
    """The signature's outputs with expressions over axis names for their dynamic dimensions."""
    program = traced.program
    nodes = {node.name: node for node in program.graph.nodes}
    results = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    specs: list[TensorSpec] = []
    for spec, name in zip(signature.outputs, results, strict=True):
        shape = tuple(_size_in_axes(size, traced, signature) for size in nodes[name].meta["val"].shape)
        specs.append(replace(spec, shape=shape))
    return tuple(specs)


def _size_in_axes(size: Any, traced: TracedCall, signature: Signature) -> int | str:
    if isinstance(size, int):
        return size
    expression: Any = in_axes(size.node.expr, traced.guards)
    # Here, an axis in steps is written as step * count, so that divisions by the step disappear.
    steps = {axis_symbol(axis.name): axis.multiple_of for axis in signature.axes if axis.multiple_of > 1}
    counts = {symbol: sympy.Symbol(f"{symbol.name} count", integer=True, positive=True) for symbol in steps}
    stepped = {symbol: step * counts[symbol] for symbol, step in steps.items()}
    named = {counts[symbol]: symbol / step for symbol, step in steps.items()}
    expression = expression.xreplace(stepped).xreplace(named)
    return int(expression) if expression.is_Integer else str(expression)


def check_output_axes(signature: Signature, requested: Mapping[str, Mapping[int, str | None]]) -> None:
    """Refuse dynamic_axes entries for outputs that disagree with what the model computes.

    Args:
        signature: with the outputs' shapes from `output_specs`.
        requested: {output: {dimension: axis name, or None for any}}.
    """
    for spec in signature.outputs:
        for dim, axis in requested.get(spec.name, {}).items():
            size = spec.shape[dim] if -len(spec.shape) <= dim < len(spec.shape) else None
            if not isinstance(size, str) or (axis is not None and not _is_same(axis, size)):
                raise DynamicAxisError(
                    f"dynamic_axes[{spec.name!r}]",
                    axis=axis or "",
                    got=f"{axis or 'dynamic'!r} for dimension {dim}",
                    allowed=f"the axes of the model's output, {spec}",
                    fix="name them as the model computes them, or leave outputs out: they follow from the inputs",
                )


def _is_same(axis: str, size: str) -> bool:
    """Whether a user's name or expression is the size that was found, whatever the order of its terms."""
    try:
        return axis == size or dim_in_axes(axis) == dim_in_axes(size)
    except ValueError:  # the size has a form that users don't write
        return False
