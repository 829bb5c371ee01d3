"""How a graph is called: which placeholders take weights, live tensors and sizes, and what comes back.

Enters: a GraphModule with the fake value of every node. Leaves: `GraphLayout`, plain data. Separate because graph
parts, their axes and the assembled results all read it, and none of them keeps torch's nodes alive.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import sympy
import torch
from torch import fx
from torch.utils._sympy import interp
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils._sympy.symbol import SymT, prefix_str, symbol_is_type

__all__ = ["GraphLayout", "SizeRange", "UnknownSizeError", "fake_value", "is_tensor", "read_layout", "result_names"]

_NO_LIMIT = 2**31  # torch writes "no limit" as infinity or as the largest int64


class UnknownSizeError(Exception):
    """A number that no shape of a live tensor shows, such as a Python number that changes from call to call."""


def fake_value(node: fx.Node) -> Any:
    """The value that torch worked out for a node without computing it: a fake tensor, a symbolic number, or None."""
    return node.meta.get("val", node.meta.get("example_value"))


def is_tensor(result: object) -> bool:
    """Whether an argument of a graph's output node is a tensor."""
    return isinstance(result, fx.Node) and isinstance(fake_value(result), torch.Tensor)


@dataclass(frozen=True)
class SizeRange:
    """The sizes that torch has traced a graph for; `high` is None where there is no limit."""

    low: int
    high: int | None


@dataclass(frozen=True)
class GraphLayout:
    """How the placeholders of a graph are filled, and what it returns. Symbolic sizes are sympy's expressions.

    Args:
        placeholders: all names, in order.
        weights: the placeholders that take parameters and buffers.
        tensors: placeholder -> symbolic shape, for all other tensors.
        numbers: placeholder -> symbolic number.
        results: the graph's results in order: a number or None, or Ellipsis in the place of a tensor.
        ranges: symbol -> the sizes that torch has traced, for every symbol in a shape.
    """

    placeholders: tuple[str, ...]
    weights: frozenset[str]
    tensors: Mapping[str, tuple[Any, ...]]
    numbers: Mapping[str, Any]
    results: tuple[Any, ...]
    ranges: Mapping[sympy.Symbol, SizeRange]

    def split(self, values: Sequence[Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The weights and the live tensors among the values of a call."""
        by_name = dict(zip(self.placeholders, values, strict=True))
        weights = {name: by_name[name] for name in self.placeholders if name in self.weights}
        return weights, {name: by_name[name] for name in self.tensors}

    def check_numbers(self) -> None:
        """Refuse a graph with a number that no tensor shows.

        Raises:
            UnknownSizeError: there is one.
        """
        known = self._dimensions
        for number in (*self.numbers.values(), *self.results):
            unknown = [symbol for symbol in _symbols(number) if symbol not in known]
            if unknown:
                raise UnknownSizeError(", ".join(sorted(map(str, unknown))))

    def number(self, number: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The value of a symbolic number in a call; any other value as it is."""
        symbols = _symbols(number)
        if not symbols:
            return int(number) if isinstance(number, sympy.Integer) else number
        return cast("Any", interp).sympy_interp(PythonReferenceAnalysis, self.sizes(tensors), number)

    def sizes(self, tensors: Mapping[str, torch.Tensor]) -> dict[sympy.Symbol, int]:
        """The size of every symbol in a call that is a whole dimension of a tensor."""
        return {symbol: tensors[name].shape[index] for symbol, (name, index) in self._dimensions.items()}

    @property
    def axes(self) -> tuple[sympy.Symbol, ...]:
        """The symbols, in the order of `sizes`."""
        return tuple(self._dimensions)

    def assemble(self, outputs: Sequence[torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        """Put the results of a call together.

        Args:
            outputs: the tensors among the results, in order.
            tensors: the live tensors of the call.
        """
        remaining = iter(outputs)
        return tuple(next(remaining) if result is Ellipsis else self.number(result, tensors) for result in self.results)

    @cached_property
    def _dimensions(self) -> dict[sympy.Symbol, tuple[str, int]]:
        """Symbol -> the first dimension of a live tensor that is this symbol alone."""
        found: dict[sympy.Symbol, tuple[str, int]] = {}
        for name, shape in self.tensors.items():
            for index, size in enumerate(shape):
                if isinstance(size, sympy.Symbol):
                    found.setdefault(size, (name, index))
        return found


def read_layout(graph_module: fx.GraphModule, weights: Collection[str]) -> GraphLayout:
    """Read how a graph is called.

    Args:
        graph_module: with the fake value of every node.
        weights: names of the placeholders that take parameters and buffers.
    """
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    live = {node.name: fake_value(node) for node in nodes if node.name not in weights}
    tensors = {name: value for name, value in live.items() if isinstance(value, torch.Tensor)}
    shapes = {name: tuple(map(_plain_size, tensor.shape)) for name, tensor in tensors.items()}
    axes = _axes_of_expressions(shapes)
    ranges: dict[sympy.Symbol, SizeRange] = {}
    for size in [size for tensor in tensors.values() for size in tensor.shape if isinstance(size, torch.SymInt)]:
        ranges |= {symbol: _range(size, symbol) for symbol in _symbols(_plain(size))}
        if (axis := axes.get(_plain(size))) is not None:
            ranges[axis] = _range(size, _plain(size))
    return GraphLayout(
        placeholders=tuple(node.name for node in nodes),
        weights=frozenset(weights),
        tensors={name: tuple(_over_axes(size, axes) for size in shape) for name, shape in shapes.items()},
        numbers={name: _over_axes(_plain(value), axes) for name, value in live.items() if name not in tensors},
        results=tuple(_over_axes(_result(result), axes) for result in results_of(graph_module.graph)),
        ranges=ranges,
    )


def _axes_of_expressions(shapes: Mapping[str, Sequence[Any]]) -> dict[Any, sympy.Symbol]:
    """Find dimensions that follow from sizes which no tensor shows, such as half of an image's height.

    Returns:
        expression -> the symbol of an axis of its own.
    """
    shown = {size for shape in shapes.values() for size in shape if isinstance(size, sympy.Symbol)}
    axes: dict[Any, sympy.Symbol] = {}
    for name, shape in shapes.items():
        for index, size in enumerate(shape):
            if size not in axes and (hidden := _symbols(size) - shown):
                depends_on_values = any(symbol_is_type(symbol, SymT.UNBACKED_INT) for symbol in hidden)
                kind = prefix_str[SymT.UNBACKED_INT if depends_on_values else SymT.SIZE]
                axes[size] = sympy.Symbol(f"{kind}_{name}_{index}", integer=True, positive=True)
    return axes


def _over_axes(number: Any, axes: Mapping[Any, sympy.Symbol]) -> Any:
    """A symbolic number over the axes of the graph; any other value as it is."""
    return cast("Any", number).xreplace(axes) if isinstance(number, sympy.Basic) else number


def results_of(graph: fx.Graph) -> Sequence[Any]:
    """The arguments of a graph's output node, flat."""
    results: object = graph.output_node().args[0]
    return cast("Sequence[Any]", results) if isinstance(results, (tuple, list)) else [results]


def result_names(graph: fx.Graph) -> tuple[str, ...]:
    """The names of the nodes that a graph returns."""
    return tuple(result.name for result in results_of(graph) if isinstance(result, fx.Node))


def _result(result: Any) -> Any:
    if is_tensor(result):
        return Ellipsis
    return _plain(fake_value(result)) if isinstance(result, fx.Node) else result


def _plain(size: Any) -> Any:
    """A symbolic number as sympy's expression; any other value as it is."""
    is_symbolic = isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool))
    return cast("Any", size).node.expr if is_symbolic else size


def _plain_size(size: Any) -> Any:
    """A dimension as a number where it is the same at every size, such as min(5, batch) of at least 5 items."""
    if isinstance(size, torch.SymInt):
        node = cast("Any", size).node
        bounds = node.shape_env.bound_sympy(node.expr)
        if bounds.lower == bounds.upper:
            return int(bounds.lower)
    return _plain(size)


def _symbols(number: Any) -> set[sympy.Symbol]:
    return cast("set[sympy.Symbol]", number.free_symbols) if isinstance(number, sympy.Basic) else set()


def _range(size: torch.SymInt, symbol: Any) -> SizeRange:
    bounds = cast("Any", size.node.shape_env).bound_sympy(symbol)
    is_limited = bool(bounds.upper < _NO_LIMIT)
    return SizeRange(max(0, int(bounds.lower)), int(bounds.upper) if is_limited else None)
