"""torch's symbols for dynamic dimensions ↔ the user's axes, and the outputs' shapes in axis names.

Enters: torch's program and the signature. Leaves: the axis of each symbol, and the outputs' shapes in axis names.
Separate because ONNX shows these names to people, whatever torch calls its symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.exporter.size_conditions import axis_symbol
from torch2engine.exporter.trace import TracedCall

__all__ = ["check_output_axes", "find_axis_symbols", "output_specs"]


def find_axis_symbols(traced: TracedCall) -> dict[str, str]:
    """Find the axis of each of torch's symbols, as text for the ONNX graph."""
    return traced.guards.axis_of_symbol


def output_specs(traced: TracedCall, signature: Signature) -> tuple[TensorSpec, ...]:
    """The signature's outputs with expressions over axis names for their dynamic dimensions."""
    program = traced.program
    nodes = {node.name: node for node in program.graph.nodes}
    results = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    specs: list[TensorSpec] = []
    for spec, name in zip(signature.outputs, results, strict=True):
        shape = tuple(
            _size_in_axes(size, traced.guards.axis_of_symbol, signature) for size in nodes[name].meta["val"].shape
        )
        specs.append(replace(spec, shape=shape))
    return tuple(specs)


def _size_in_axes(size: Any, axes: Mapping[str, str], signature: Signature) -> int | str:
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    # An axis in steps is written as step * count first: divisions by the step then disappear.
    counts = {symbol: sympy.Symbol(symbol.name, integer=True, positive=True) for symbol in expression.free_symbols}
    stepped: dict[Any, Any] = {}
    named: dict[Any, Any] = {}
    for symbol in expression.free_symbols:
        if symbol.name not in axes:
            continue
        step = signature.axis(axes[symbol.name]).multiple_of
        stepped[symbol] = step * counts[symbol]
        named[counts[symbol]] = axis_symbol(axes[symbol.name]) / step
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
            if not isinstance(size, str) or (axis is not None and axis != size):
                raise DynamicAxisError(
                    f"dynamic_axes[{spec.name!r}]",
                    axis=axis or "",
                    got=f"dimension {dim} is {axis or 'dynamic'!r}",
                    allowed=f"the model's output is {spec}",
                    fix="name them as the model computes them, or leave outputs out: they follow from the inputs",
                )
