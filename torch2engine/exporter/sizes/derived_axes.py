"""An axis that the model ties to others → the expression that it follows from.

Enters: a condition that fails, and the captured call. Leaves: the call with that axis as an expression, such as
"past + new". Separate because it rewrites a signature, which proofs leave alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.size_expression import SizeExpression, parse_size_expression
from torch2engine.core.spec import Axis, Profile, TensorSpec
from torch2engine.exporter.sizes.size_conditions import SizeCondition, axis_symbol

__all__ = ["derive_axis"]

_SYMPY: Any = sympy  # its own annotations are in the way


def derive_axis(captured: CapturedCall, condition: SizeCondition) -> CapturedCall | None:
    """Write an axis as an expression over others, if the condition says that it is one; else None.

    Args:
        captured: the call, in which the axis has a range of its own.
        condition: an equation that fails at some sizes.

    Raises:
        DynamicAxisError: the axis's own range is too narrow for what it follows from.
    """
    found = _solve(captured, condition)
    if found is None:
        return None
    axis, expression = found
    signature = captured.signature
    for profile in captured.profiles:
        _check_range(axis, expression, profile, condition.source)
    return replace(
        captured,
        signature=replace(
            signature,
            inputs=tuple(_with_expression(spec, axis.name, expression.text) for spec in signature.inputs),
            axes=tuple(other for other in signature.axes if other.name != axis.name),
        ),
        profiles=tuple(
            Profile({name: sizes for name, sizes in profile.ranges.items() if name != axis.name})
            for profile in captured.profiles
        ),
    )


def _solve(captured: CapturedCall, condition: SizeCondition) -> tuple[Axis, SizeExpression] | None:
    """The axis that the equation gives as a growing function of others."""
    equation = condition.expression
    if type(equation).__name__ != "Equality" or len(condition.axes) < 2:
        return None
    used = {name for spec in captured.signature.inputs for name in _axes_in_expressions(spec)}
    found: list[tuple[Axis, SizeExpression]] = []
    for axis in reversed(captured.signature.axes):
        if axis.name not in condition.axes or axis.name in used:
            continue
        expression = _solved_for(equation.lhs - equation.rhs, axis.name)
        if expression is not None:
            found.append((axis, expression))
    return min(found, key=lambda pair: "-" in pair[1].text, default=None)


def _axes_in_expressions(spec: TensorSpec) -> set[str]:
    dims = [dim for dim in spec.shape if isinstance(dim, str) and not dim.isidentifier()]
    return {name for dim in dims for name in parse_size_expression(dim).axes}


def _solved_for(difference: Any, name: str) -> SizeExpression | None:
    """The axis's expression where `difference` is 0; None where there is no whole, growing one."""
    symbol = axis_symbol(name)
    terms = _SYMPY.expand(difference)
    factor: Any = terms.coeff(symbol)
    rest: Any = (terms - factor * symbol).expand()
    if factor not in (1, -1) or symbol in rest.free_symbols:
        return None
    try:
        expression = parse_size_expression(str(-rest * factor))
    except ValueError:
        return None
    return None if expression.text.isidentifier() else expression  # axes that are equal should have one name


def _with_expression(spec: TensorSpec, axis: str, text: str) -> TensorSpec:
    return replace(spec, shape=tuple(text if dim == axis else dim for dim in spec.shape))


def _check_range(axis: Axis, expression: SizeExpression, profile: Profile, source: str) -> None:
    """Refuse a range that does not hold all sizes of the expression."""
    low, _, high = profile.ranges[axis.name]
    least = expression.value(profile.sizes(0))
    largest = expression.value(profile.sizes(2))
    if least < low or largest > high:
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got=f"a model that makes it {expression.text}, which is {least}..{largest}",
            allowed=f"{low}..{high}, the range of its own",
            fix=f"write {expression.text!r} instead of Axis({axis.name!r}, ...) in dynamic_axes, and narrow the others",
            source=source,
        )
