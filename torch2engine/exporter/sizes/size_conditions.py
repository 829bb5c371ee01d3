"""Conditions on sizes under which a traced program is right, and where in the axes' ranges they hold.

Enters: torch's program, and its decisions about shapes. Leaves: each decision as a condition over the axes' names, with
the points of a grid at which it holds. Separate because torch can't prove many conditions that are always true. This
file evaluates them instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray

from torch2engine.core.spec import Signature, size_of
from torch2engine.exporter.sizes.shape_guards import ShapeGuards
from torch2engine.exporter.sizes.size_grid import SizeGrid

__all__ = [
    "SizeCondition",
    "axis_symbol",
    "collect_conditions",
    "dim_in_axes",
    "holds_at",
    "in_axes",
    "shape_environment",
    "user_input_sizes",
]

Truth = NDArray[np.bool_]

# their own annotations are in the way of expressions of any kind
_SYMPY: Any = sympy
_NUMPY: Any = np


@dataclass(frozen=True)
class SizeCondition:
    """A condition on the sizes, under which a program holds.

    Args:
        expression: a sympy condition over the axes' names.
        source: the user's "FILE:LINE" that made torch decide, or "".
        is_input: it says what an input's dimension became, which the program's text depends on.
    """

    expression: Any
    source: str
    is_input: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """The names in it."""
        return tuple(sorted(symbol.name for symbol in self.expression.free_symbols))

    def __str__(self) -> str:
        sign = {"Equality": "==", "Unequality": "!="}.get(type(self.expression).__name__)
        if sign is None:
            return str(self.expression)
        left, right = self.expression.args
        return f"{left} {sign} {right}"


def axis_symbol(name: str) -> Any:
    """The sympy symbol of an axis.

    Symbol, not sympify: sympify reads axis names such as N or S as its own functions.
    """
    return sympy.Symbol(name, integer=True, positive=True)


def dim_in_axes(dim: str) -> Any:
    """The size of a dimension, such as "past + new", over the axes' symbols."""
    return size_of(dim, _AxisSymbols())


class _AxisSymbols(dict[str, Any]):
    """The symbol of every axis."""

    def __missing__(self, name: str) -> Any:
        return axis_symbol(name)


def in_axes(expression: Any, guards: ShapeGuards) -> Any:
    """An expression over axes' names, from one over torch's symbols."""
    dims = guards.axis_of_symbol
    known = {symbol: dim_in_axes(dims[symbol.name]) for symbol in expression.free_symbols if symbol.name in dims}
    return expression.xreplace(known)


def collect_conditions(
    program: torch.export.ExportedProgram, guards: ShapeGuards, signature: Signature
) -> list[SizeCondition]:
    """Collect all conditions of a program; those that are true by their form are left out.

    Args:
        program: as torch.export gave it.
        guards: with the lines of torch's decisions.
        signature: of the call that was traced.
    """
    conditions: dict[str, SizeCondition] = {}
    for condition in (*_of_inputs(program, guards, signature), *_of_guards(program, guards)):
        if condition.expression != sympy.true:
            conditions.setdefault(str(condition.expression), condition)
    return list(conditions.values())


def user_input_sizes(program: torch.export.ExportedProgram) -> list[Sequence[Any]]:
    """The sizes of the program's inputs, in the signature's order, with torch's symbols in them."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    return [placeholders[name].meta["val"].shape for name in names]


def _of_inputs(
    program: torch.export.ExportedProgram, guards: ShapeGuards, signature: Signature
) -> Iterator[SizeCondition]:
    """Each dynamic dimension of an input is its axis, and nothing narrower."""
    for spec, sizes in zip(signature.inputs, user_input_sizes(program), strict=True):
        for size, dim in zip(sizes, spec.shape, strict=True):
            if isinstance(dim, str):
                equation: Any = _SYMPY.Eq(dim_in_axes(dim), _expression(size, guards))
                yield SizeCondition(equation, guards.source_of(dim), is_input=True)


def _expression(size: Any, guards: ShapeGuards) -> Any:
    return size if isinstance(size, int) else in_axes(size.node.expr, guards)


def _of_guards(program: torch.export.ExportedProgram, guards: ShapeGuards) -> Iterator[SizeCondition]:
    """torch's guards, and the ranges that it gave its symbols beside them."""
    environment = shape_environment(program)
    if environment is None:
        return
    for guard in environment.guards:
        yield SizeCondition(in_axes(guard.expr, guards), guards.source_of_condition(str(guard.expr)))
    axes = guards.axis_of_symbol
    for symbol, held in environment.var_to_range.items():
        if symbol.name not in axes or symbol in environment.replacements:
            continue
        dim = axes[symbol.name]
        if held.lower > 2:  # torch itself assumes that no size is 0 or 1
            yield SizeCondition(dim_in_axes(dim) >= int(held.lower), guards.source_of(dim))
        if held.upper.is_Integer:
            yield SizeCondition(dim_in_axes(dim) <= int(held.upper), guards.source_of(dim))


def shape_environment(program: torch.export.ExportedProgram) -> Any:
    """torch's ShapeEnv; None where no input is dynamic."""
    sizes: list[Any] = [size for shape in user_input_sizes(program) for size in shape]
    return next((size.node.shape_env for size in sizes if not isinstance(size, int)), None)


def holds_at(condition: SizeCondition, grid: SizeGrid) -> Truth:
    """Evaluate a condition: true at the points where it holds, and nowhere if a part of it is unknown."""
    try:
        truth = _value(condition.expression, grid.sizes)
    except KeyError:  # an operation or a symbol that is not known here
        truth = False
    return np.broadcast_to(np.asarray(truth, dtype=np.bool_), (grid.count,))


def _value(expression: Any, sizes: Mapping[str, Any]) -> Any:
    if expression.is_Symbol:
        return sizes[expression.name]
    if expression in (sympy.true, sympy.false):
        return bool(expression)
    if expression.is_Integer:
        return int(expression)
    if expression.is_number:
        return float(expression)
    return _OPERATIONS[type(expression).__name__](*[_value(argument, sizes) for argument in expression.args])


def _all_of(operation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *arguments: reduce(operation, arguments)


def _power(base: Any, exponent: Any) -> Any:
    return np.power(np.asarray(base, dtype=np.float64), exponent)


def _ceiling_division(dividend: Any, divisor: Any) -> Any:
    return -np.floor_divide(-dividend, divisor)


def _modular_indexing(base: Any, divisor: Any, modulus: Any) -> Any:
    return np.mod(np.floor_divide(base, divisor), modulus)


def _unchanged(value: Any) -> Any:
    return value


# By the names of sympy's classes, and of torch's in torch/utils/_sympy/functions.py (torch 2.9 to 2.13).
_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "Add": _all_of(_NUMPY.add),
    "Mul": _all_of(_NUMPY.multiply),
    "Pow": _power,
    "And": _all_of(_NUMPY.logical_and),
    "Or": _all_of(_NUMPY.logical_or),
    "Not": _NUMPY.logical_not,
    "Equality": _NUMPY.equal,
    "Unequality": _NUMPY.not_equal,
    "StrictLessThan": _NUMPY.less,
    "LessThan": _NUMPY.less_equal,
    "StrictGreaterThan": _NUMPY.greater,
    "GreaterThan": _NUMPY.greater_equal,
    "Min": _all_of(_NUMPY.minimum),
    "Max": _all_of(_NUMPY.maximum),
    "Abs": _NUMPY.abs,
    "floor": _NUMPY.floor,
    "ceiling": _NUMPY.ceil,
    "Mod": _NUMPY.mod,
    "PythonMod": _NUMPY.mod,
    "FloorDiv": _NUMPY.floor_divide,
    "CleanDiv": _NUMPY.floor_divide,
    "CeilDiv": _ceiling_division,
    "ModularIndexing": _modular_indexing,
    "IntTrueDiv": _NUMPY.true_divide,
    "FloatTrueDiv": _NUMPY.true_divide,
    "PowByNatural": _NUMPY.power,
    "FloatPow": _power,
    "OpaqueUnaryFn_sqrt": _NUMPY.sqrt,
    "OpaqueUnaryFn_log2": _NUMPY.log2,
    "ToFloat": _unchanged,
    "FloorToInt": _NUMPY.floor,
    "CeilToInt": _NUMPY.ceil,
    "TruncToInt": _NUMPY.trunc,
    "RoundToInt": _NUMPY.round,
    "Where": _NUMPY.where,
    "Identity": _unchanged,
}
