"""An ONNX model ↔ which torch module and source line each of its nodes comes from.

Enters: a ModelProto. Leaves: origins by node name, or the same model with origins written on its nodes. Separate
because precisions, budgets, errors and reports all name the user's modules, and rewriting tools lose them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch2engine.core.constants import MODULE_KEY, SOURCE_KEY

__all__ = [
    "NodeOrigin",
    "copy_origin",
    "node_modules",
    "node_origins",
    "origin_of",
    "restore_origins",
]


@dataclass(frozen=True)
class NodeOrigin:
    """The origin of a node: a torch module and a line of the user's code.

    Args:
        module: path of the torch module; "" is the model itself.
        source: "FILE:LINE" in the user's code, or "".
    """

    module: str = ""
    source: str = ""


def origin_of(node: Any) -> NodeOrigin:
    """Read the origin that is written on a node."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    return NodeOrigin(properties.get(MODULE_KEY, ""), properties.get(SOURCE_KEY, ""))


def node_origins(model: Any) -> dict[str, NodeOrigin]:
    """Read the origin of every node of the main graph, by node name."""
    return {node.name: origin_of(node) for node in model.graph.node}


def node_modules(model: Any) -> dict[str, str]:
    """Read the torch module path of every node of the main graph, by node name."""
    return {node.name: origin_of(node).module for node in model.graph.node}


def copy_origin(source: Any, target: Any) -> None:
    """Write the origin of one node on another one that has none yet."""
    for entry in source.metadata_props:
        if entry.key in (MODULE_KEY, SOURCE_KEY):
            target.metadata_props.add(key=entry.key, value=entry.value)


def restore_origins(model: Any, known: Mapping[str, NodeOrigin]) -> None:
    """Write origins on the nodes of a model that a tool has rewritten.

    A new node takes the origin of a node that reads its outputs, or else of one that makes its inputs.

    Args:
        model: ModelProto, changed in place.
        known: origins before the rewriting, by node name.
    """
    readers: dict[str, list[Any]] = {}
    makers: dict[str, Any] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        for name in node.output:
            makers[name] = node
    origin_by_id = {id(node): known[node.name] for node in model.graph.node if node.name in known}
    for node in reversed(model.graph.node):
        if id(node) in origin_by_id:
            continue
        neighbours = [reader for name in node.output for reader in readers.get(name, ())]
        neighbours += [makers[name] for name in node.input if name in makers]
        origins = (origin_by_id[id(neighbour)] for neighbour in neighbours if id(neighbour) in origin_by_id)
        origin_by_id[id(node)] = next(origins, NodeOrigin())
    for node in model.graph.node:
        _write_origin(node, origin_by_id[id(node)])


def _write_origin(node: Any, origin: NodeOrigin) -> None:
    others = [entry for entry in node.metadata_props if entry.key not in (MODULE_KEY, SOURCE_KEY)]
    del node.metadata_props[:]
    node.metadata_props.extend(others)
    node.metadata_props.add(key=MODULE_KEY, value=origin.module)
    node.metadata_props.add(key=SOURCE_KEY, value=origin.source)
