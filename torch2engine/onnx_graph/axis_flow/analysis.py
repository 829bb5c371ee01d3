"""An ONNX model → for each dynamic axis, whether its entries are independent of each other.

Enters: a ModelProto with its signature. Leaves: {axis: the operator that lets entries influence each other, None
where none does}. Separate from the rules because this file walks the graph, joins branches and writes the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.onnx_graph.axis_flow.compute_rules import COMPUTE_RULES
from torch2engine.onnx_graph.axis_flow.layout_rules import LAYOUT_RULES
from torch2engine.onnx_graph.axis_flow.node_view import NodeView
from torch2engine.onnx_graph.axis_flow.size_rules import MOST_ELEMENTS, SHAPE_READERS, apply_size_rule
from torch2engine.onnx_graph.axis_flow.sizes import Size, Symbol, parse_size
from torch2engine.onnx_graph.axis_flow.values import (
    Entries,
    Fixed,
    Mixed,
    Mixes,
    Place,
    Shape,
    Sizes,
    Value,
    all_fixed,
)
from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.tensor_types import without_weight_values
from torch2engine.onnx_graph.walk import subgraphs

__all__ = ["find_influences"]

Scope = dict[str, Value]

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_ONNX_DOMAINS = ("", "ai.onnx")
_LOOP_ROUNDS = 8  # after which the carried values of a loop count as mixed
_UNKNOWN = Mixed(None, "a tensor is neither made by a node nor a weight")
_INTEGER_TYPES = (6, 7)  # INT32 and INT64 of onnx.TensorProto


def find_influences(model: Any, signature: Signature) -> dict[str, str | None]:
    """Find the axes along which an entry of the outputs depends on more than the same entry of the inputs.

    Args:
        model: ModelProto; the values of its large weights are not read.
        signature: names and dynamic axes of the inputs and outputs.

    Returns:
        {axis: the operator that lets entries influence each other and how, or None}. None is a proof for all inputs and
        sizes. A text is no proof of an influence, since operators without a rule count as mixing.
    """
    if not signature.axes:
        return {}
    import onnx

    untyped_onnx: Any = onnx  # the package's own annotations lack shape_inference
    graph = untyped_onnx.shape_inference.infer_shapes(without_weight_values(model), data_prop=True).graph
    opsets = [entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS]
    names = [axis.name for axis in signature.axes]
    return {name: _AxisAnalysis(name, names, max(opsets, default=0)).find_influence(graph, signature) for name in names}


@dataclass(frozen=True)
class _AxisAnalysis:
    """The walk for one axis.

    Args:
        axis: its name.
        axes: the names of all axes.
        opset: the version of ONNX's own operators.
    """

    axis: str
    axes: Sequence[str]
    opset: int

    @property
    def size(self) -> Size:
        return parse_size(self.axis, self.axis)

    def find_influence(self, graph: Any, signature: Signature) -> str | None:
        scope = {spec.name: self._input_value(spec) for spec in signature.inputs}
        self._walk(graph, scope)
        for spec in signature.outputs:
            value = scope[spec.name]
            if isinstance(value, Mixed):
                return value.cause
            if not isinstance(value, Entries):
                return f"output '{spec.name}' does not have an entry for each entry of the inputs"
            if value.place != Place(value.place.dim) or spec.shape[value.place.dim] != self.axis:
                return f"output '{spec.name}' has the entries in one dimension with others"
        return None

    def _input_value(self, spec: TensorSpec) -> Value:
        shape = tuple(Size(dim) if isinstance(dim, int) else parse_size(dim, self.axis) for dim in spec.shape)
        dims = [dim for dim, size in enumerate(shape) if size.follows_axis]
        if not dims:
            return Fixed(shape)
        if len(dims) > 1 or shape[dims[0]] != self.size:
            return Mixed(shape, f"input '{spec.name}' has the axis in more than one dimension")
        return Entries(shape, Place(dims[0]))

    def _walk(self, graph: Any, scope: Scope) -> None:
        """Add the values of all tensors of a graph to a scope."""
        for tensor in graph.initializer:
            scope[tensor.name] = _constant(tensor)
        shapes = {value.name: self._known_shape(value) for value in (*graph.value_info, *graph.output)}
        for node in graph.node:
            inferred = [shapes.get(name) for name in node.output]
            inputs = [scope.get(name, _UNKNOWN) if name else None for name in node.input]
            view = NodeView(node, inputs, inferred, self.size, self.opset)
            for name, value in zip(node.output, self._outputs(view, scope), strict=True):
                if name:
                    scope[name] = value

    def _known_shape(self, value: Any) -> tuple[Size | None, ...] | None:
        """The shape of a tensor, as far as ONNX knows it."""
        if not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(self._known_size(dim) for dim in value.type.tensor_type.shape.dim)

    def _known_size(self, dim: Any) -> Size | None:
        if dim.HasField("dim_value"):
            return Size(dim.dim_value)
        names = re.findall(r"[^\W\d]\w*", dim.dim_param)
        # Each run of ONNX's inference makes its own names for other sizes, so two sizes may share a name.
        return parse_size(dim.dim_param, self.axis) if names and set(names) <= set(self.axes) else None

    def _outputs(self, node: NodeView, scope: Scope) -> list[Value]:
        """The values of a node's outputs."""
        count = len(node.proto.output)
        try:
            values = self._apply(node, scope)
        except Mixes as reason:
            return [self._mixed(node, index, _described(node.proto, str(reason))) for index in range(count)]
        cause = _described(node.proto, "has a second result without a rule")
        return [*values, *(self._mixed(node, index, cause) for index in range(len(values), count))]

    def _apply(self, node: NodeView, scope: Scope) -> list[Value]:
        operator = node.proto.op_type
        is_standard = node.proto.domain in _ONNX_DOMAINS
        if is_standard and operator in SHAPE_READERS:
            return [SHAPE_READERS[operator](node)]
        if is_standard and operator == "Constant":
            return [_constant_of_node(node)]
        for value in node.inputs:
            if isinstance(value, Mixed):
                return [self._mixed(node, index, value.cause) for index in range(len(node.proto.output))]
        if is_standard and (inner := list(subgraphs(node.proto))):
            return self._control_flow(node, inner, scope)
        if not is_standard or operator in _RANDOM:
            raise Mixes("draws random numbers" if operator in _RANDOM else "has no rule")
        if (sizes := apply_size_rule(node)) is not None:
            return [sizes]
        if all_fixed(node.inputs):
            return [node.fixed_output(index) for index in range(len(node.proto.output))]
        rule = LAYOUT_RULES.get(operator) or COMPUTE_RULES.get(operator)
        if rule is None:
            raise Mixes("has no rule")
        result = rule(node)
        return result if isinstance(result, list) else [result]

    def _mixed(self, node: NodeView, output: int, cause: str) -> Mixed:
        """An output that is mixed; a size that is not known may depend on the entries."""
        inferred = node.inferred[output]
        if inferred is None:
            return Mixed(None, cause)
        name = node.proto.output[output]
        sizes = [
            Size(1, (Symbol(f"{name}.{dim}", True),)) if size is None else size for dim, size in enumerate(inferred)
        ]
        return Mixed(tuple(sizes), cause)

    # Branches and loops

    def _control_flow(self, node: NodeView, graphs: Sequence[Any], scope: Scope) -> list[Value]:
        if node.proto.op_type == "If":
            node.require_fixed(0)
            return self._if(node, graphs, scope)
        if node.proto.op_type == "Loop":
            return self._loop(node, graphs[0], scope)
        if node.proto.op_type == "Scan":
            return self._scan(node, graphs[0], scope)
        raise Mixes("has no rule")

    def _if(self, node: NodeView, graphs: Sequence[Any], scope: Scope) -> list[Value]:
        branches: list[list[Value]] = []
        for graph in graphs:
            inner = dict(scope)
            self._walk(graph, inner)
            branches.append([inner[value.name] for value in graph.output])
        prefix = node.proto.output[0]
        return [
            _joined(one, other, f"{prefix}/{index}") for index, (one, other) in enumerate(zip(*branches, strict=True))
        ]

    def _loop(self, node: NodeView, body: Any, scope: Scope) -> list[Value]:
        for index in (0, 1):
            if node.has(index):
                node.require_fixed(index)
        names = [value.name for value in body.input]
        start = [Fixed(()), Fixed(()), *(node.value(index) for index in range(2, len(node.inputs)))]
        ends = self._carried(node, body, scope, dict(zip(names, start, strict=True)), names[2:], 1)
        if not all_fixed(ends[:1]):
            raise Mixes("ends when the entries say so")
        return self._with_stacks(node, ends[1:], len(names) - 2)

    def _scan(self, node: NodeView, body: Any, scope: Scope) -> list[Value]:
        count = node.attribute("num_scan_inputs", 0)
        if any(attribute.name.startswith("scan_") for attribute in node.proto.attribute):
            raise Mixes("scans in an order without a rule")
        names = [value.name for value in body.input]
        states = len(names) - count
        start = [node.value(index) for index in range(states)]
        parts = [_without_first_dim(node, index) for index in range(states, len(names))]
        ends = self._carried(node, body, scope, dict(zip(names, [*start, *parts], strict=True)), names[:states], 0)
        return self._with_stacks(node, ends, states)

    def _carried(
        self, node: NodeView, body: Any, scope: Scope, start: Scope, carried: Sequence[str], first_output: int
    ) -> list[Value]:
        """Walk a loop's body until the values that it carries from round to round are stable.

        Returns:
            the values of the body's outputs.
        """
        state = dict(start)
        for _ in range(_LOOP_ROUNDS):
            inner = {**scope, **state}
            self._walk(body, inner)
            ends = [inner[value.name] for value in body.output]
            after = dict(state)
            for name, end in zip(carried, ends[first_output:], strict=False):
                after[name] = _joined(state[name], end, f"{node.proto.output[0]}/{name}")
            if after == state:
                return ends
            state = after
        raise Mixes("carries values whose sizes can't be followed")

    def _with_stacks(self, node: NodeView, ends: Sequence[Value], states: int) -> list[Value]:
        """The states at the end, and the values that are stacked along a new first dimension."""
        outputs = list(ends[:states])
        for index, value in enumerate(ends[states:], states):
            if isinstance(value, Entries):
                outputs.append(
                    node.entries_like(value.place.moved_to(value.place.dim + 1), len(value.shape) + 1, index)
                )
            elif isinstance(value, Mixed):
                outputs.append(self._mixed(node, index, value.cause))
            elif all_fixed([value]):
                outputs.append(node.fixed_output(index))
            else:
                raise Mixes("stacks the number of entries")
        return outputs


def _without_first_dim(node: NodeView, index: int) -> Value:
    """One round's part of what a Scan goes through."""
    value = node.tensor(index)
    if isinstance(value, Fixed):
        return Fixed(None if value.shape is None else value.shape[1:])
    if value.place.dim == 0:
        raise Mixes("goes from entry to entry")
    return Entries(value.shape[1:], value.place.moved_to(value.place.dim - 1))


def _joined(one: Value, other: Value, name: str) -> Value:
    """Join the facts about two tensors, of which a third is one.

    Raises:
        Mixes: entries lie along different dimensions, or are there in one of them only.
    """
    if one == other:
        return one
    for value in (one, other):
        if isinstance(value, Mixed):
            return value
    if all_fixed([one, other]):
        return Fixed(_joined_shape(one.shape, other.shape, name))
    if isinstance(one, Entries) and isinstance(other, Entries) and one.place == other.place:
        shape = _joined_shape(one.shape, other.shape, name)
        if shape is not None:
            return Entries(shape, one.place)
    raise Mixes("gives entries that lie along different dimensions, or values that are the same for all")


def _joined_shape(one: Shape | None, other: Shape | None, name: str) -> Shape | None:
    if one is None or other is None or len(one) != len(other):
        return None
    pairs = enumerate(zip(one, other, strict=True))
    return tuple(left if left == right else Size(1, (Symbol(f"{name}.{dim}"),)) for dim, (left, right) in pairs)


def _constant(tensor: Any) -> Value:
    """A weight or a constant; of a small one the elements."""
    from onnx import TensorProto, numpy_helper

    shape = tuple(Size(size) for size in tensor.dims)
    is_small = len(shape) <= 1 and all(size.factor <= MOST_ELEMENTS for size in shape)
    is_number = tensor.data_type in (*_INTEGER_TYPES, TensorProto.FLOAT)
    if not is_small or not is_number or tensor.data_location == TensorProto.EXTERNAL:
        return Fixed(shape)
    elements = numpy_helper.to_array(tensor).ravel().tolist()
    if tensor.data_type == TensorProto.FLOAT:
        return Fixed(shape, tuple(elements))
    return Sizes(shape, tuple(map(Size, elements)))


def _constant_of_node(node: NodeView) -> Value:
    """The value of a Constant node, in any of the attributes that it may be in."""
    for attribute in node.proto.attribute:
        if attribute.name == "value":
            return _constant(attribute.t)
        if attribute.name == "value_int":
            return Sizes((), (Size(attribute.i),))
        if attribute.name == "value_ints":
            return Sizes((Size(len(attribute.ints)),), tuple(map(Size, attribute.ints)))
    return node.fixed_output(0)


def _described(node: Any, reason: str) -> str:
    """The node as the subject of a reason, with the user's module and line."""
    origin = origin_of(node)
    places: Iterator[str] = filter(
        None,
        (f"module '{origin.module}'" if origin.module else "", f"at {_short(origin.source)}" if origin.source else ""),
    )
    where = ", ".join(places)
    return f"{node.op_type} {f'({where})' if where else repr(node.name)} {reason}"


def _short(source: str) -> str:
    """ "FILE:LINE" with the file's name alone."""
    return Path(source).name
