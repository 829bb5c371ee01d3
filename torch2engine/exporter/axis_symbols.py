"""torch's symbols for dynamic dimensions ↔ the user's axes, proved for inputs and worked out for outputs.

Enters: torch's program and the signature. Leaves: the axis of each symbol, and the outputs' shapes in axis names.
Separate because torch may fix an axis, tie it to another or narrow its range without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis, Signature, TensorSpec
from torch2engine.exporter.shape_guards import ShapeGuards, axes_must_be_equal
from torch2engine.exporter.trace import TracedCall

__all__ = ["AxisSymbol", "check_output_axes", "find_axis_symbols", "output_specs"]


@dataclass(frozen=True)
class AxisSymbol:
    """One of torch's symbols, which counts the steps of an axis.

    Args:
        axis: name of the axis.
        step: sizes of the axis are multiples of it; the symbol is the axis divided by it.
    """

    axis: str
    step: int

    @property
    def expression(self) -> str:
        """The symbol in terms of the axis."""
        return self.axis if self.step == 1 else f"({self.axis}/{self.step})"


def find_axis_symbols(traced: TracedCall, signature: Signature) -> dict[str, AxisSymbol]:
    """Find the axis of each of torch's symbols, and prove that each dynamic dimension still is one.

    Raises:
        DynamicAxisError: a dimension came out fixed, tied to another, or its range narrower than the axis's.
    """
    program = traced.program
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    symbols: dict[str, AxisSymbol] = {}
    for spec, name in zip(signature.inputs, names, strict=True):
        for index, dim in enumerate(spec.shape):
            if not isinstance(dim, str):
                continue
            axis = signature.axis(dim)
            torch_symbol = _symbol_of(placeholders[name].meta["val"].shape[index], axis, spec, traced.guards)
            symbol = symbols.setdefault(str(torch_symbol), AxisSymbol(dim, axis.multiple_of))
            if symbol != AxisSymbol(dim, axis.multiple_of):
                raise axes_must_be_equal(symbol.axis, dim, traced.guards)
            _check_range(torch_symbol, axis, program, traced.guards)
    return symbols


def _symbol_of(size: Any, axis: Axis, spec: TensorSpec, guards: ShapeGuards) -> Any:
    """The one symbol in a size of the program."""
    symbols: list[Any] = [] if isinstance(size, int) else list(size.node.expr.free_symbols)
    if len(symbols) != 1:
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got=f"torch.export fixed it to {size} in input '{spec.name}'",
            allowed=f"a free axis {axis.min}..{axis.max}",
            fix=f"compute with x.shape instead of numbers, or leave '{axis.name}' out of dynamic_axes",
            source=guards.source_of(axis.name),
        )
    return symbols[0]


def _check_range(torch_symbol: Any, axis: Axis, program: Any, guards: ShapeGuards) -> None:
    """Refuse a program that holds for a part of the axis only."""
    held = program.range_constraints.get(torch_symbol)
    low, _, high = axis.range
    step = axis.multiple_of
    if held is not None and (held.lower > max(low // step, 2) or held.upper < high // step):
        lowest = low if held.lower <= 2 else held.lower * step  # below 2 torch's range says nothing
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got=f"the model holds only for {lowest}..{min(held.upper * step, high)}",
            allowed=f"{low}..{high} was asked",
            fix="narrow the Axis to that range, or change the line so that it holds for every size",
            source=guards.source_of(axis.name),
        )


def output_specs(
    program: torch.export.ExportedProgram, signature: Signature, symbols: Mapping[str, AxisSymbol]
) -> tuple[TensorSpec, ...]:
    """The signature's outputs with expressions over axis names for their dynamic dimensions."""
    import sympy

    nodes = {node.name: node for node in program.graph.nodes}
    # Symbol, not sympify: axes may be called N or S, which sympy reads as its own functions.
    axis_sizes = {name: sympy.Symbol(symbol.axis) / symbol.step for name, symbol in symbols.items()}
    results = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    specs: list[TensorSpec] = []
    for spec, name in zip(signature.outputs, results, strict=True):
        shape = tuple(_size_in_axes(size, axis_sizes) for size in nodes[name].meta["val"].shape)
        specs.append(replace(spec, shape=shape))
    return tuple(specs)


def _size_in_axes(size: Any, axis_sizes: Mapping[str, Any]) -> int | str:
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    known = {symbol: axis_sizes[str(symbol)] for symbol in expression.free_symbols if str(symbol) in axis_sizes}
    expression = expression.xreplace(known)
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
