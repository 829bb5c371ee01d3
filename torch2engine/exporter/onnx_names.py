"""The exported ONNX graph under the user's names: inputs, outputs, weights and axes, and every node's origin.

Enters: the ir.Model of torch's exporter. Leaves: the same ONNX graph under the signature's names, with module path and
source line on each node. Separate because torch names by position, lets names clash, and logs origins.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
from onnx_ir.traversal import RecursiveGraphIterator

from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.constants import MODULE_KEY, SOURCE_KEY
from torch2engine.core.package import PACKAGE_ROOT
from torch2engine.core.preprocess import ORIGIN
from torch2engine.exporter.flat_module import FLAT_MODULE_PREFIX, module_path
from torch2engine.onnx_graph.node_origins import NodeOrigin

__all__ = ["drop_saturation", "name_axes", "name_tensors", "record_origins"]

_FRAME = re.compile(r'File "(.+?)", line (\d+)')


def name_tensors(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give graph inputs and outputs these names, and weights the module's own; rename other values that have them.

    Args:
        graph: onnx_ir.Graph, changed in place.
    """
    _separate_outputs(graph)
    values = [*graph.inputs, *graph.outputs]
    names = [*inputs, *outputs]
    for index, value in enumerate(values):
        value.name = f"__t2e_{index}"  # out of the way of every other name
    taken = set(names)
    for value in list(graph.initializers.values()):
        _rename_initializer(graph, value, _free_name(value.name.removeprefix(FLAT_MODULE_PREFIX), taken))
        taken.add(value.name)
    for node in RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name:
                value.name = _free_name(value.name, taken)
                taken.add(value.name)
    for value, name in zip(values, names, strict=True):
        value.name = name


def _rename_initializer(graph: Any, value: Any, name: str) -> None:
    if name == value.name:
        return
    graph.initializers.pop(value.name)
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    graph.register_initializer(value)


def drop_saturation(graph: Any) -> None:
    """Remove Clip behind QuantizeLinear, which saturates by itself. No TensorRT flavour has Clip for int8.

    Args:
        graph: onnx_ir.Graph, changed in place.
    """
    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type == "Clip" and node.inputs[0] is not None else None
        if before is not None and before.op_type == "QuantizeLinear":
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node, safe=True)


def _separate_outputs(graph: Any) -> None:
    """Give every output a value of its own: one that is also an input, a weight or another output gets an Identity."""
    taken = {*graph.inputs, *graph.initializers.values()}
    for index, value in enumerate(list(graph.outputs)):
        if value in taken:
            node = onnx_ir.Node("", "Identity", [value], name=f"node_output_{index}")
            copy = node.outputs[0]
            copy.name = f"__t2e_output_{index}"
            copy.shape = value.shape
            copy.type = value.type
            graph.append(node)
            graph.outputs[index] = copy
        taken.add(graph.outputs[index])


def _free_name(name: str, taken: set[str]) -> str:
    """The name itself, or the name with the first free number behind it."""
    if name not in taken:
        return name
    number = 1
    while f"{name}__{number}" in taken:
        number += 1
    return f"{name}__{number}"


def name_axes(graph: Any, symbols: Mapping[str, str], shapes: Sequence[Sequence[int | str]]) -> None:
    """Write axis names for torch's symbols in every shape, and the signature's own shapes on inputs and outputs.

    Args:
        graph: onnx_ir.Graph, changed in place.
        symbols: torch's symbol -> axis name (or an expression over one).
        shapes: the inputs' and outputs' shapes as in the signature.
    """
    inner_values = [value for node in RecursiveGraphIterator(graph) for value in node.outputs]
    for value in [*graph.inputs, *graph.outputs, *inner_values]:
        if value.shape is not None and symbols:
            value.shape = onnx_ir.Shape([_dim_in_axes(dim, symbols) for dim in value.shape])
    for value, shape in zip((*graph.inputs, *graph.outputs), shapes, strict=True):
        value.shape = onnx_ir.Shape(list(shape))


def _dim_in_axes(dim: Any, symbols: Mapping[str, str]) -> Any:
    """A dimension with axis names for torch's symbols; a number stays a number."""
    if isinstance(dim, int) or not isinstance(dim.value, str):
        return dim if isinstance(dim, int) else dim.value
    any_symbol = r"\b(" + "|".join(map(re.escape, symbols)) + r")\b"
    return re.sub(any_symbol, lambda match: symbols[match[0]], dim.value)


def record_origins(graph: Any, root: str) -> None:
    """Write torch module path and source line on every node; nodes that an optimisation made take a neighbour's.

    Args:
        graph: onnx_ir.Graph, changed in place.
        root: "FILE:LINE" of the model's forward, for nodes without any neighbour.
    """
    nodes = list(RecursiveGraphIterator(graph))
    for node in nodes:
        origin = _origin_from_torch(node.metadata_props)
        module = _module_before_fusion(node) or origin.module
        for key in [key for key in node.metadata_props if key.startswith("pkg.torch.onnx.")]:
            del node.metadata_props[key]
        if origin.source:
            node.metadata_props[SOURCE_KEY] = origin.source
        if origin.source or module:
            node.metadata_props[MODULE_KEY] = module
    for ordered in (nodes, nodes[::-1]):
        for node in ordered:
            if SOURCE_KEY not in node.metadata_props:
                _inherit_origin(node)
    for node in nodes:
        node.metadata_props.setdefault(MODULE_KEY, "")
        node.metadata_props.setdefault(SOURCE_KEY, root)


def _origin_from_torch(properties: Mapping[str, str]) -> NodeOrigin:
    """The origin in the stack trace and the scopes that torch's exporter wrote on a node."""
    stack_trace = properties.get("pkg.torch.onnx.stack_trace", "")
    frames = [(file, int(line)) for file, line in _FRAME.findall(stack_trace)]
    try:
        scopes: list[str] = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    is_in_model = any(f"{scope}.".startswith(FLAT_MODULE_PREFIX) for scope in scopes)
    # The frames alone don't decide: a class without a file (exec, python -c) has none in them.
    if not is_in_model and frames and Path(frames[-1][0]).is_relative_to(PACKAGE_ROOT):
        return NodeOrigin(ORIGIN, ORIGIN)
    innermost_scope = scopes[-2] if len(scopes) > 1 else ""  # the last is the operator's
    return NodeOrigin(module_path(innermost_scope), innermost_user_frame(frames))


def _module_before_fusion(node: Any) -> str:
    """The path of a convolution that contains its folded BatchNorm and has that one's name; else ""."""
    if not node.metadata_props.get("pkg.onnxscript.rewriter.rule_name", "").startswith("FuseBatchNorm"):
        return ""
    weight = node.inputs[1]
    return "" if weight is None or not weight.name else weight.name.rpartition(".")[0]


def _inherit_origin(node: Any) -> None:
    """Give a node the origin of the first neighbour that has one."""
    producers = [value.producer() for value in node.inputs if value is not None]
    consumers = [user for value in node.outputs for user in value.consumers()]
    for neighbour in [*producers, *consumers]:
        if neighbour is not None and SOURCE_KEY in neighbour.metadata_props:
            for key in (MODULE_KEY, SOURCE_KEY):
                node.metadata_props.setdefault(key, neighbour.metadata_props[key])
            return
