"""An ONNX model that was changed for the builder → the same, with names by which a refit knows its new constants.

Enters: the model and the one before the changes. Leaves: the model with other names. Separate because each change adds
constants of its own, and a refit needs to tell all of them from the weights of the user's module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch2engine.core.constants import BUILDER_CONSTANT
from torch2engine.onnx_graph.walk import walk_graphs

__all__ = ["constant_names", "name_own_constants"]


def constant_names(model: Any) -> frozenset[str]:
    """The names of a ModelProto's initializers and of the results of its Constant nodes, in subgraphs too."""
    return frozenset(_constants(model))


def name_own_constants(model: Any, earlier: frozenset[str]) -> None:
    """Give each constant that was not there before a name that begins with BUILDER_CONSTANT.

    TensorRT names an engine's weights by them. What changes the model of a refittable engine reads no weight, so that
    such a constant is the same whatever weights the module has.

    Args:
        model: a ModelProto; it is changed.
        earlier: from `constant_names`, of the model before the changes.
    """
    own = sorted(set(_constants(model)) - earlier)
    names = {name: f"{BUILDER_CONSTANT}{index}" for index, name in enumerate(own)}
    for graph in walk_graphs(model.graph):
        for tensor in (*graph.initializer, *graph.value_info, *graph.output):
            tensor.name = names.get(tensor.name, tensor.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _constants(model: Any) -> Iterator[str]:
    for graph in walk_graphs(model.graph):
        yield from (tensor.name for tensor in graph.initializer)
        yield from (node.output[0] for node in graph.node if node.op_type == "Constant")
