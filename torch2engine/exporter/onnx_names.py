"""The exported ONNX graph made ours: names of inputs and outputs, of axes, and every node's origin.

Enters: the ir.Model of torch's exporter. Leaves: the same graph under the signature's names, with module path and
source line on each node. Beside `export` because torch names by position, lets names clash, and logs origins.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_ir.traversal import RecursiveGraphIterator

from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.core.constants import MODULE_KEY, SOURCE_KEY
from torch2engine.core.package import PACKAGE_ROOT
from torch2engine.core.preprocess import ORIGIN

__all__ = [
    "drop_saturation",
    "module_path",
    "name_axes",
    "name_tensors",
    "record_origins",
]

WRAPPER = "model"

_FRAME = re.compile(r'File "(.+?)", line (\d+)')


def name_tensors(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give graph inputs and outputs these names, and weights the module's own, whatever else is called so.

    Args:
        graph: onnx_ir.Graph, changed in place.
    """
    _separate_outputs(graph)
    ours = [*graph.inputs, *graph.outputs]
    wanted = [*inputs, *outputs]
    for index, value in enumerate(ours):
        value.name = f"__t2e_{index}"
    taken = set(wanted)
    for value in list(graph.initializers.values()):
        own = value.name.removeprefix(f"{WRAPPER}.")
        name = own if own not in taken else _free(own, taken)
        taken.add(name)
        if name != value.name:
            graph.initializers.pop(value.name)
            value.name = name
            if value.const_value is not None:
                value.const_value.name = name
            graph.register_initializer(value)
    for node in RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name and value.name in taken:
                value.name = _free(value.name, taken)
            if value.name:
                taken.add(value.name)
    for value, name in zip(ours, wanted, strict=True):
        value.name = name


def drop_saturation(graph: Any) -> None:
    """Remove Clip behind QuantizeLinear, which saturates by itself; no flavour clips int8.

    Args:
        graph: onnx_ir.Graph, changed in place.
    """
    import onnx_ir

    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type == "Clip" and node.inputs[0] is not None else None
        if before is not None and before.op_type == "QuantizeLinear":
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node, safe=True)


def _separate_outputs(graph: Any) -> None:
    """Give every output a value of its own: one that is also an input, a weight or another output gets an Identity."""
    import onnx_ir

    taken = {*graph.inputs, *graph.initializers.values()}
    for index, value in enumerate(list(graph.outputs)):
        if value in taken:
            node = onnx_ir.Node("", "Identity", [value], name=f"node_output_{index}")
            copy = node.outputs[0]
            copy.name, copy.shape, copy.type = f"__t2e_output_{index}", value.shape, value.type
            graph.append(node)
            graph.outputs[index] = copy
        taken.add(graph.outputs[index])


def _free(name: str, taken: set[str]) -> str:
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
    import onnx_ir

    word = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b") if symbols else None
    values = [
        *graph.inputs,
        *graph.outputs,
        *(value for node in RecursiveGraphIterator(graph) for value in node.outputs),
    ]
    for value in values:
        if value.shape is None or word is None:
            continue
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        value.shape = onnx_ir.Shape(
            [word.sub(lambda m: symbols[m[0]], dim) if isinstance(dim, str) else dim for dim in dims]
        )
    for value, shape in zip((*graph.inputs, *graph.outputs), shapes, strict=True):
        value.shape = onnx_ir.Shape(list(shape))


def record_origins(graph: Any, root: str) -> None:
    """Write torch module path and source line on every node; nodes that an optimisation made take a neighbour's.

    Args:
        graph: onnx_ir.Graph, changed in place.
        root: "FILE:LINE" of the model's forward, for nodes without any neighbour.
    """
    nodes = list(RecursiveGraphIterator(graph))
    for node in nodes:
        module, source = _origin(node.metadata_props)
        module = _before_fusion(node) or module
        for key in [key for key in node.metadata_props if key.startswith("pkg.torch.onnx.")]:
            del node.metadata_props[key]
        if source:
            node.metadata_props[SOURCE_KEY] = source
        if source or module:
            node.metadata_props[MODULE_KEY] = module
    for direction in (nodes, nodes[::-1]):
        for node in direction:
            if SOURCE_KEY not in node.metadata_props:
                _inherit(node)
    for node in nodes:
        node.metadata_props.setdefault(MODULE_KEY, "")
        node.metadata_props.setdefault(SOURCE_KEY, root)


def _before_fusion(node: Any) -> str:
    """The path of a convolution that has swallowed its BatchNorm and carries that one's name; else ""."""
    if not node.metadata_props.get("pkg.onnxscript.rewriter.rule_name", "").startswith("FuseBatchNorm"):
        return ""
    weight = node.inputs[1]
    return "" if weight is None or not weight.name else weight.name.rpartition(".")[0]


def _inherit(node: Any) -> None:
    producers = [value.producer() for value in node.inputs if value is not None]
    consumers = [user for value in node.outputs for user in value.consumers()]
    for other in [*producers, *consumers]:
        if other is not None and SOURCE_KEY in other.metadata_props:
            for key in (MODULE_KEY, SOURCE_KEY):
                node.metadata_props.setdefault(key, other.metadata_props[key])
            return


def _origin(props: Mapping[str, str]) -> tuple[str, str]:
    frames = [(file, int(line)) for file, line in _FRAME.findall(props.get("pkg.torch.onnx.stack_trace", ""))]
    try:
        scopes: list[str] = ast.literal_eval(props.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    if frames and Path(frames[-1][0]).is_relative_to(PACKAGE_ROOT):  # no module of the model's made it
        return ORIGIN, ORIGIN
    return module_path(scopes[-2] if len(scopes) > 1 else ""), innermost_user_frame(frames)


def module_path(scope: str) -> str:
    """The path of a scope as in named_modules(); torch has scopes of its own, which are ""."""
    return scope.removeprefix(f"{WRAPPER}.") if scope.startswith(f"{WRAPPER}.") else ""
