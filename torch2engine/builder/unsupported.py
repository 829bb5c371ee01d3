"""A parse that TensorRT refused → one error that lists every unsupported node.

Enters: the parser that failed. Leaves: an UnsupportedOperatorError with operator, node, torch module and source line of
each node. Separate because the parser stops at the first node that it can't import. To find the others, refused nodes
are cut out with the nodes behind them, and the rest is parsed again, until no node is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx as _typed_onnx

from torch2engine.core.errors import BuildError, Torch2EngineError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.walk import walk_nodes
from torch2engine.trt.bindings import Builder, INetworkDefinition, OnnxParser, ParserError, TensorRT, make_network

__all__ = ["explain_refusal"]

# onnx's own annotations are incomplete
onnx = cast("Any", _typed_onnx)

# The parser gives these reasons for a node that its own table of limits rules out, or that it has no importer for.
_EMPTY_REASONS = ("", "false")
_MOST_ROUNDS = 50


@dataclass(frozen=True)
class _Refusal:
    """One error of the parser.

    Args:
        operator, name: of the refused node; both are empty if the parser names none.
        position: the node's place in the main graph that was parsed; None if it lies deeper, or is unknown.
        enclosing: ``"name (operator)"`` of the If, Loop or function call that it lies in, or empty.
        reason: TensorRT's words.
    """

    operator: str
    name: str
    position: int | None
    enclosing: str
    reason: str

    def is_about(self, node: Any) -> bool:
        return node.name == self.name and node.op_type == self.operator


def explain_refusal(rt: TensorRT, builder: Builder, parser: OnnxParser, path: Path, log_mark: int) -> Torch2EngineError:
    """Make the error of a failed parse.

    Args:
        rt, builder: used to parse again.
        parser: the one that failed.
        path: the ONNX file.
        log_mark: the place in TensorRT's log at which the build began.

    Returns:
        UnsupportedOperatorError; BuildError if the parser blames no node.
    """
    model = onnx.load(str(path), load_external_data=False)
    search = _UnsupportedNodeSearch(rt, builder, model, path)
    search.run(_refusals(parser))
    nodes = search.nodes_in_graph_order()
    if not nodes:
        log = search.other_reasons or rt.log.lines(log_mark)
        return BuildError(
            rt.title,
            got="a refusal of the ONNX file by its parser",
            allowed="a file that it reads",
            fix="see its lines below, and export the model otherwise",
            log=log,
        )
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    other = "; ".join(search.other_reasons)
    return UnsupportedOperatorError(
        rt.title,
        nodes=nodes,
        got=f"{count} of the ONNX graph that it can't build",
        allowed="operators that it has",
        fix="replace these operations in the model" + (f" (its parser also says: '{other}')" if other else ""),
    )


def _refusals(parser: OnnxParser) -> list[_Refusal]:
    refusals: list[_Refusal] = []
    for number in range(parser.num_errors):
        error: ParserError = parser.get_error(number)
        reason = str(error.desc()).strip()
        if reason in _EMPTY_REASONS:
            reason = "no importer or unsupported dtype/attribute"
        stack: Sequence[str] = error.local_function_stack()
        refusals.append(
            _Refusal(
                operator=error.node_operator(),
                name=error.node_name(),
                position=None if stack or error.node() < 0 else error.node(),
                enclosing=stack[0] if stack else "",
                reason=reason,
            )
        )
    return refusals


class _UnsupportedNodeSearch:
    """Cuts refused nodes out of a model and parses the rest, until nothing is refused.

    Attributes:
        other_reasons: the parser's reasons that belong to no node.
    """

    def __init__(self, rt: TensorRT, builder: Builder, model: Any, path: Path) -> None:
        self.other_reasons: list[str] = []
        self._rt = rt
        self._builder: Builder = builder
        self._model = model
        self._path = path
        self._types = _value_types(model)
        self._nodes: dict[tuple[int, str, str], UnsupportedNode] = {}

    def nodes_in_graph_order(self) -> list[UnsupportedNode]:
        """The unsupported nodes that `run` has found."""
        return [self._nodes[key] for key in sorted(self._nodes)]

    def run(self, refusals: Sequence[_Refusal]) -> None:
        """Find every unsupported node.

        Args:
            refusals: of the whole model.
        """
        cut: set[int] = set()
        for _ in range(_MOST_ROUNDS):
            refused: set[int] = set()
            for refusal in refusals:
                position = self._add_refusal(refusal, cut)
                if position is not None:
                    refused.add(position)
            if refused <= cut:
                return
            cut |= refused
            refusals = self._refusals_without(cut)

    def _add_refusal(self, refusal: _Refusal, cut: set[int]) -> int | None:
        """Note a refusal of the model without the cut nodes.

        Returns:
            the position of the refused node in the main graph; None if no node is to blame.
        """
        position = _main_graph_position(self._model, refusal)
        if position is None and not refusal.operator:
            position = self._position_of_reason(refusal.reason, cut)
        if position is None:
            if refusal.reason not in self.other_reasons:
                self.other_reasons.append(refusal.reason)
            return None
        key = (position, refusal.operator, refusal.name)
        self._nodes.setdefault(key, _unsupported_node(self._model.graph.node[position], refusal))
        return position

    def _refusals_without(self, cut: set[int]) -> list[_Refusal]:
        rest = _model_without(self._model, cut, self._types)
        return [] if rest is None else self._parse(rest)

    def _parse(self, rest: Any) -> list[_Refusal]:
        # A new network each time: a failed parse leaves half of one behind.
        network: INetworkDefinition = make_network(self._rt, self._builder)
        parser: OnnxParser = self._rt.api.OnnxParser(network, self._rt.logger)
        if parser.parse(rest.SerializeToString(), str(self._path)):
            return []
        return [_at_original_position(refusal, rest, self._model) for refusal in _refusals(parser)]

    def _position_of_reason(self, reason: str, cut: set[int]) -> int | None:
        """Find the node behind a refusal that names none: the last node of the shortest prefix that is refused.

        Returns:
            its position; None if the file is refused without any node, such as for its weights or its header.
        """
        if any(refusal.reason == reason for refusal in self._parse(_model_without_nodes(self._model))):
            return None
        positions = [position for position in range(len(self._model.graph.node)) if position not in cut]
        longest_accepted = 0
        shortest_refused = len(positions)
        while shortest_refused - longest_accepted > 1:
            length = (longest_accepted + shortest_refused) // 2
            refusals = self._refusals_without(cut | set(positions[length:]))
            if any(refusal.reason == reason for refusal in refusals):
                shortest_refused = length
            else:
                longest_accepted = length
        return positions[shortest_refused - 1]


def _value_types(model: Any) -> dict[str, Any]:
    """{name of a value: its type}, inferred where the file has none."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = model.graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _main_graph_position(model: Any, refusal: _Refusal) -> int | None:
    """The position in the main graph of the refused node, or of the node that it lies in."""
    nodes = model.graph.node
    position = refusal.position
    if position is not None and position < len(nodes) and nodes[position].op_type == refusal.operator:
        return position
    for index, node in enumerate(nodes):
        if refusal.enclosing and refusal.enclosing == f"{node.name} ({node.op_type})":
            return index
        # Not every version gives the enclosing node; then the refused node's own name counts, wherever it lies.
        if refusal.name and any(refusal.is_about(inner) for inner in walk_nodes([node])):
            return index
    return None


def _input_names(node: Any) -> set[str]:
    """The inputs of a node and of the nodes in its subgraphs."""
    return {name for inner in walk_nodes([node]) for name in inner.input if name}


def _unsupported_node(outermost: Any, refusal: _Refusal) -> UnsupportedNode:
    node = next((inner for inner in walk_nodes([outermost]) if refusal.is_about(inner)), outermost)
    origin = origin_of(node)
    outer_origin = origin_of(outermost)
    return UnsupportedNode(
        refusal.operator or node.op_type,
        refusal.name or node.name or ", ".join(node.output),
        origin.module or outer_origin.module,
        origin.source or outer_origin.source,
        refusal.reason,
    )


def _model_without(model: Any, cut: set[int], types: dict[str, Any]) -> Any | None:
    """The model without the cut nodes and without those behind them; None if nothing remains."""
    missing: set[str] = set()
    remaining: list[Any] = []
    for position, node in enumerate(model.graph.node):
        if position in cut or not missing.isdisjoint(_input_names(node)):
            missing.update(node.output)
        else:
            remaining.append(node)
    read = {name for node in remaining for name in _input_names(node)}
    results = [name for node in remaining for name in node.output]
    # Every value that no node reads becomes an output, so that nodes before a cut one are parsed too.
    ends = {value.name for value in model.graph.output} | (set(results) - read)
    outputs = [types[name] for name in results if name in ends and name in types]
    if not outputs:
        return None
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[:]
    rest.graph.node.extend(remaining)
    del rest.graph.output[:]
    rest.graph.output.extend(outputs)
    return rest


def _model_without_nodes(model: Any) -> Any:
    """The model with a single node, which copies its first input."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.node[:]
    del bare.graph.output[:]
    for value in model.graph.input[:1]:
        output = bare.graph.output.add()
        output.CopyFrom(value)
        output.name = f"{value.name}__copy"
        bare.graph.node.append(onnx.helper.make_node("Identity", [value.name], [output.name], name="__shell"))
    return bare


def _at_original_position(refusal: _Refusal, rest: Any, model: Any) -> _Refusal:
    """A refusal of the rest of a model, with the node's position in the whole model."""
    if refusal.position is None or refusal.position >= len(rest.graph.node):
        return refusal
    outputs = list(rest.graph.node[refusal.position].output)
    positions = (index for index, node in enumerate(model.graph.node) if list(node.output) == outputs)
    return replace(refusal, position=next(positions, None))
