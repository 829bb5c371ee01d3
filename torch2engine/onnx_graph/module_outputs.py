"""An ONNX graph → which of its tensors are the outputs of torch modules, and how these depend on each other.

Enters: a ModelProto whose nodes have origins. Leaves: names of tensors by module path, and a model that returns some of
them too. Separate because a search for a wrong module marks tensors, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from torch2engine.onnx_graph.node_origins import origin_of
from torch2engine.onnx_graph.walk import subgraphs, walk_nodes

__all__ = ["declare_outputs", "find_module_outputs", "following", "sources_of"]


def find_module_outputs(model: Any) -> dict[str, tuple[str, ...]]:
    """Find what each torch module makes for nodes outside of it.

    Returns:
        module path -> names of tensors, in the order in which they are made. Modules without nodes are missing. The
        model itself, "", makes the outputs of the graph.
    """
    origins = [origin_of(node).module for node in model.graph.node]
    readers: dict[str, list[str]] = {}
    for node, origin in zip(model.graph.node, origins, strict=True):
        for name in _read_names(node):
            readers.setdefault(name, []).append(origin)
    returned = [value.name for value in model.graph.output]
    found: dict[str, list[str]] = {}
    for node, origin in zip(model.graph.node, origins, strict=True):
        for name in filter(None, node.output):
            for scope in _scopes(origin):
                if name in returned or not all(_is_inside(reader, scope) for reader in readers.get(name, ())):
                    found.setdefault(scope, []).append(name)
    return {scope: tuple(names) for scope, names in found.items()} | {"": tuple(returned)}


def _scopes(origin: str) -> list[str]:
    """The path of a module, and those of the modules around it, without the model itself."""
    steps = origin.split(".") if origin else []
    return [".".join(steps[:count]) for count in range(1, len(steps) + 1)]


def _is_inside(origin: str, scope: str) -> bool:
    return origin == scope or origin.startswith(f"{scope}.")


def _read_names(node: Any) -> set[str]:
    """The names that a node reads, its subgraphs included."""
    inner = {name for graph in subgraphs(node) for child in walk_nodes(graph.node) for name in child.input}
    return {*node.input, *inner}


def following(model: Any, marked: Collection[str]) -> dict[str, set[str]]:
    """Find for each of these tensors which of the others follow from it, without one of them between."""
    nearest: dict[str, set[str]] = {}
    followers: dict[str, set[str]] = {name: set() for name in marked}
    for node in model.graph.node:
        before = {earlier for name in _read_names(node) for earlier in nearest.get(name, ())}
        for name in node.output:
            if name in followers:
                for earlier in before:
                    followers[earlier].add(name)
                nearest[name] = {name}
            else:
                nearest[name] = before
    return followers


def sources_of(model: Any) -> dict[str, str]:
    """Tensor name -> "FILE:LINE" of the user's code that makes it, or ""."""
    return {name: origin_of(node).source for node in model.graph.node for name in node.output}


def declare_outputs(
    model: Any, names: Sequence[str], values: Mapping[str, NDArray[Any]] | None = None, inputs: Any = None
) -> None:
    """Let a model return some more of its tensors.

    Args:
        model: ModelProto, changed in place.
        names: of tensors; each is declared once.
        values: what they are in one call. Then they are declared with these dtypes and shapes.
        inputs: input name -> array of this call. Then the inputs have these fixed shapes.
    """
    present = {value.name for value in model.graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    for value in model.graph.output:
        if values is not None:
            array = values[value.name]
            kind = value.type.tensor_type.elem_type or kinds.get(value.name)
            kind = kind or helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    for value in model.graph.input:
        if inputs is not None and value.name in inputs:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, inputs[value.name].shape))
