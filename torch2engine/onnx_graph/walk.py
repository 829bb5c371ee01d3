"""An ONNX graph → its nodes, graphs and tensors, including those of subgraphs.

Enters: a GraphProto or nodes. Leaves: an iterator. Separate because branches and loops hold graphs of their own. All
code that reads a whole model must visit them in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "operators_of",
    "subgraphs",
    "walk_graphs",
    "walk_model_nodes",
    "walk_model_tensors",
    "walk_nodes",
    "walk_tensors",
]


def subgraphs(node: Any) -> Iterator[Any]:
    """Give the graphs directly inside a node, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk_graphs(graph: Any) -> Iterator[Any]:
    """Give a graph and every graph inside its nodes, the outermost first."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from walk_graphs(inner)


def walk_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Give each node, followed by the nodes of its subgraphs."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from walk_nodes(inner.node)


def walk_model_nodes(model: Any) -> Iterator[Any]:
    """Give every node of the graph and of the model's functions, those of subgraphs too."""
    yield from walk_nodes(model.graph.node)
    for function in model.functions:
        yield from walk_nodes(function.node)


def operators_of(model: Any) -> set[str]:
    """Give the names of all operators that a model uses anywhere, of whatever domain."""
    return {node.op_type for node in walk_model_nodes(model)}


def walk_tensors(graph: Any) -> Iterator[Any]:
    """Give every TensorProto: initializers and attributes, sparse ones too, in the graph and in every graph inside."""
    for part in walk_graphs(graph):
        yield from part.initializer
        yield from _sparse_parts(part.sparse_initializer)
        for node in part.node:
            yield from _attribute_tensors(node)


def walk_model_tensors(model: Any) -> Iterator[Any]:
    """Give every TensorProto of the graph and of the model's functions."""
    yield from walk_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)
            for inner in subgraphs(node):
                yield from walk_tensors(inner)


def _attribute_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _sparse_parts([attribute.sparse_tensor])
        yield from _sparse_parts(attribute.sparse_tensors)


def _sparse_parts(sparse_tensors: Iterable[Any]) -> Iterator[Any]:
    for sparse in sparse_tensors:
        yield from (sparse.values, sparse.indices)
