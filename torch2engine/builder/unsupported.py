"""Why the parser refused a graph → one error that lists every node at fault.

Enters: a parser that said no. Leaves: an UnsupportedOperatorError with operator, node, torch module and source line of
each node. Beside `build` because the parser stops at the first node that it fails to import: to find the rest, what it
refused is cut out and the remainder parsed again, until nothing is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx as _typed_onnx

from torch2engine.builder.plan import make_network
from torch2engine.core.constants import MODULE_KEY, SOURCE_KEY
from torch2engine.core.errors import BuildError, Torch2EngineError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.onnx_graph.walk import walk_nodes
from torch2engine.trt.library import Builder, INetworkDefinition, OnnxParser, ParserError, TensorRT

__all__ = ["explain"]

# onnx's own annotations are incomplete
onnx = cast("Any", _typed_onnx)

# What a parser says of a node that its own table of limits rules out, and what it says of nodes it never heard of.
_SILENT = ("", "false")
_ROUNDS = 50


@dataclass(frozen=True)
class _Complaint:
    """One parser error.

    Args:
        op, name: operator and name of the node, both empty if the parser names none.
        index: the node's place in the graph that was parsed, -1 if it lies deeper.
        outer: ``"name (operator)"`` of the If, Loop or function call that it lies in, or empty.
        reason: TensorRT's words.
    """

    op: str
    name: str
    index: int
    outer: str
    reason: str


def explain(rt: TensorRT, builder: Builder, parser: OnnxParser, path: Path, since: int) -> Torch2EngineError:
    """Make the error of a failed parse.

    Args:
        rt, builder: used to parse again.
        parser: the one that failed.
        path: the ONNX file.
        since: where TensorRT's log stood when the build began.

    Returns:
        UnsupportedOperatorError; BuildError if no node is to blame.
    """
    model = onnx.load(str(path), load_external_data=False)
    nodes, other = _Search(rt, builder, model, path).run(_complaints(parser))
    if not nodes:
        return BuildError(rt.title, got="its parser refuses the ONNX file", log=other or rt.log.lines(since))
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    return UnsupportedOperatorError(
        rt.title,
        nodes=nodes,
        got=f"it can't build {count} of the ONNX graph",
        allowed=f"its parser also says: {'; '.join(other)}" if other else "",
        fix="replace these operations in the model",
    )


def _complaints(parser: OnnxParser) -> list[_Complaint]:
    found: list[_Complaint] = []
    for index in range(parser.num_errors):
        error: ParserError = parser.get_error(index)
        reason = str(error.desc()).strip()
        if reason in _SILENT:
            reason = "no importer or unsupported dtype/attribute"
        stack: Sequence[str] = error.local_function_stack()
        at, outer = (-1, stack[0]) if stack else (error.node(), "")
        found.append(_Complaint(error.node_operator(), error.node_name(), at, outer, reason))
    return found


class _Search:
    """Parses what is left of a model until nothing in it is refused."""

    def __init__(self, rt: TensorRT, builder: Builder, model: Any, path: Path) -> None:
        self._rt = rt
        self._builder: Builder = builder
        self._model = model
        self._path = path
        self._types = _value_types(model)

    def run(self, complaints: Sequence[_Complaint]) -> tuple[list[UnsupportedNode], list[str]]:
        """Give the nodes at fault in the graph's order, and what the parser said without a node to blame."""
        cut: set[int] = set()
        found: dict[tuple[int, str, str], UnsupportedNode] = {}
        other: dict[str, None] = {}
        for _ in range(_ROUNDS):
            new: set[int] = set()
            for complaint in complaints:
                index = _top_level(self._model, complaint)
                if index is None and not complaint.op:
                    index = self._locate(complaint.reason, cut)
                if index is None:
                    other[complaint.reason] = None
                    continue
                new.add(index)
                # What hangs on a cut node sees an input in its place, and may be refused for that alone.
                if not _depends_on(self._model.graph, index, cut):
                    found.setdefault((index, complaint.op, complaint.name), _describe(self._model, index, complaint))
            if new <= cut:
                break
            cut |= new
            complaints = self._without(cut)
        return [found[key] for key in sorted(found)], list(other)

    def _without(self, cut: set[int]) -> list[_Complaint]:
        """Complaints about the model without these nodes."""
        rest = _without(self._model, cut, self._types)
        return [] if rest is None else self._parse(rest)

    def _parse(self, rest: Any) -> list[_Complaint]:
        # A network for each time: a failed parse leaves half of one behind.
        network: INetworkDefinition = make_network(self._rt, self._builder)
        parser: OnnxParser = self._rt.api.OnnxParser(network, self._rt.logger)
        if parser.parse(rest.SerializeToString(), str(self._path)):
            return []
        return [_restored(self._model, rest, complaint) for complaint in _complaints(parser)]

    def _locate(self, reason: str, cut: set[int]) -> int | None:
        """The node behind a complaint that names none: the last one of the shortest beginning that draws it.

        None if the file draws it without any node: by its weights or its header, say.
        """
        if any(one.reason == reason for one in self._parse(_shell(self._model))):
            return None
        left = [index for index in range(len(self._model.graph.node)) if index not in cut]
        low, high = 0, len(left)  # `low` nodes don't draw it, `high` do
        while high - low > 1:
            middle = (low + high) // 2
            drawn = any(one.reason == reason for one in self._without(cut | set(left[middle:])))
            low, high = (low, middle) if drawn else (middle, high)
        return left[high - 1]


def _value_types(model: Any) -> dict[str, Any]:
    """Types by value name, inferred where the file has none."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = model.graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _top_level(model: Any, complaint: _Complaint) -> int | None:
    """The place in the main graph of the node that a complaint is about or lies in."""
    nodes = model.graph.node
    if 0 <= complaint.index < len(nodes) and nodes[complaint.index].op_type == complaint.op:
        return complaint.index
    for index, node in enumerate(nodes):
        if complaint.outer and complaint.outer == f"{node.name} ({node.op_type})":
            return index
        # not every version tells: then by the node's own name, wherever it lies
        if complaint.name and any(_is(inner, complaint) for inner in walk_nodes([node])):
            return index
    return None


def _is(node: Any, complaint: _Complaint) -> bool:
    return node.name == complaint.name and node.op_type == complaint.op


def _inputs(node: Any) -> set[str]:
    return {name for inner in walk_nodes([node]) for name in inner.input if name}


def _depends_on(graph: Any, index: int, cut: set[int]) -> bool:
    tainted: set[str] = set()
    for at, node in enumerate(graph.node):
        hangs = not tainted.isdisjoint(_inputs(node))
        if at == index:
            return hangs
        if at in cut or hangs:
            tainted.update(node.output)
    return False


def _describe(model: Any, index: int, complaint: _Complaint) -> UnsupportedNode:
    top = model.graph.node[index]
    node = next((inner for inner in walk_nodes([top]) if _is(inner, complaint)), top)
    props = {prop.key: prop.value for holder in (top, node) for prop in holder.metadata_props}
    name = complaint.name or node.name or ", ".join(node.output)
    return UnsupportedNode(
        complaint.op or node.op_type, name, props.get(MODULE_KEY, ""), props.get(SOURCE_KEY, ""), complaint.reason
    )


def _without(model: Any, cut: set[int], types: dict[str, Any]) -> Any | None:
    """The model with the results of these nodes as inputs instead; None if nothing remains."""
    nodes = {index: node for index, node in enumerate(model.graph.node) if index not in cut}
    loose = {name for index in cut for name in model.graph.node[index].output}
    # An input needs a type; where none is known, what hangs on the value goes too.
    while untyped := {name for name in loose if not _has_shape(types.get(name))}:
        gone = [index for index, node in nodes.items() if not untyped.isdisjoint(_inputs(node))]
        loose = (loose - untyped) | {name for index in gone for name in nodes.pop(index).output}
    kept = list(nodes.values())
    used = {name for node in kept for name in _inputs(node)}
    ends = {value.name for value in model.graph.output}
    ends |= {name for node in kept for name in node.output} - used
    made = [name for node in kept for name in node.output]
    outputs = [types[name] for name in made if name in ends and name in types]
    if not outputs:
        return None
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[:]
    rest.graph.node.extend(kept)
    rest.graph.input.extend(types[name] for name in sorted(loose & used))
    # Every loose end is an output, so that what led to a cut node alone is looked at too.
    del rest.graph.output[:]
    rest.graph.output.extend(outputs)
    return rest


def _shell(model: Any) -> Any:
    """The model with no other node than a copy of its first input."""
    shell = onnx.ModelProto()
    shell.CopyFrom(model)
    del shell.graph.node[:]
    del shell.graph.output[:]
    for value in model.graph.input[:1]:
        output = shell.graph.output.add()
        output.CopyFrom(value)
        output.name = f"{value.name}__copy"
        shell.graph.node.append(onnx.helper.make_node("Identity", [value.name], [output.name], name="__shell"))
    return shell


def _has_shape(value: Any) -> bool:
    return (
        value is not None
        and value.type.WhichOneof("value") == "tensor_type"
        and value.type.tensor_type.HasField("shape")
    )


def _restored(model: Any, rest: Any, complaint: _Complaint) -> _Complaint:
    """A complaint about the remainder, with the node's place in the whole model."""
    if not 0 <= complaint.index < len(rest.graph.node):
        return complaint
    outputs = list(rest.graph.node[complaint.index].output)
    index = next((at for at, node in enumerate(model.graph.node) if list(node.output) == outputs), -1)
    return replace(complaint, index=index)
