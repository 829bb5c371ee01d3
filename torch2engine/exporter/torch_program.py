"""Facts about torch.export's program, read before it becomes ONNX.

Enters: an ExportedProgram. Leaves: its lowest precision, and the nodes that have no ONNX form or no fixed size.
Separate because torch's nodes are read here and nowhere changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch._ops import OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public name

from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.errors import UnsupportedNode
from torch2engine.core.precisions import lowest_cast_precision
from torch2engine.exporter.flat_module import module_path
from torch2engine.exporter.free_sizes import makes_free_size
from torch2engine.exporter.operator_registry import reused_operator_registry

__all__ = ["failed_node", "has_mixed_norm", "lowest_precision", "value_dependent_nodes", "without_onnx_form"]

_NO_FUNCTION = "no ONNX function"


def lowest_precision(program: torch.export.ExportedProgram) -> str | None:
    """Find the lowest floating arithmetic in a program, inside autocast too: "bf16", "fp16" or None."""
    values = [node.meta.get("val") for node in _nodes(program)]
    dtypes = {dtype_name(value.dtype) for value in values if isinstance(value, torch.Tensor)}
    return lowest_cast_precision(dtypes)


def has_mixed_norm(program: torch.export.ExportedProgram) -> bool:
    """Tell whether a BatchNorm's weights have another dtype than what it normalises."""
    for node in _nodes(program):
        if "batch_norm" in _operator(node):
            tensors: list[Any] = [arg.meta["val"] for arg in node.args[:5] if isinstance(arg, torch.fx.Node)]
            if len({tensor.dtype for tensor in tensors}) > 1:
                return True
    return False


def without_onnx_form(
    program: torch.export.ExportedProgram, reported: Collection[str], opset: int
) -> list[UnsupportedNode]:
    """Find every node that can't be translated, with its module and line.

    Args:
        program: as it was given to the exporter.
        reported: the operators that the exporter's error names; it stops at the first.
        opset: ONNX's, which decides what can be translated.
    """
    decomposed, is_translatable = _decomposed(program, opset)
    unsupported: list[UnsupportedNode] = []
    for node in _nodes(decomposed):
        operator = _operator(node)
        is_used = bool(operator and node.users)
        if operator in reported or (is_used and is_translatable and not is_translatable(node.target)):
            unsupported.append(_unsupported(node, _NO_FUNCTION))
    return unsupported or [UnsupportedNode(op, "", "", "", _NO_FUNCTION) for op in sorted(reported)]


def value_dependent_nodes(program: torch.export.ExportedProgram) -> list[UnsupportedNode]:
    """Find the nodes whose result has a size that depends on values: an engine's sizes follow from its inputs' shapes.

    Nodes that only pass such a size on are left out.
    """
    return [
        _unsupported(node, "the size of its result depends on values")
        for node in _nodes(program)
        if node.users and makes_free_size(node)
    ]


def failed_node(
    program: torch.export.ExportedProgram, name: str, operator: str, reason: str, opset: int
) -> UnsupportedNode:
    """Describe the node at which the exporter failed, with its module and line where it is found.

    Args:
        program: as it was given to the exporter.
        name, operator: of the node, as the exporter's error gives them.
        reason: what the exporter said.
        opset: ONNX's.
    """
    decomposed, _ = _decomposed(program, opset)
    written = list(_nodes(program))
    for node in (*written, *_nodes(decomposed)):
        if node.name == name:
            return _unsupported(_as_written(node, written), reason)
    return UnsupportedNode(operator, name, "", "", reason)


def _as_written(part: Any, written: Sequence[Any]) -> Any:
    """The node of the user's program that a decomposed one is a part of: it has the same stack trace."""
    trace = part.meta.get("stack_trace")
    same_place = [node for node in written if trace and node.meta.get("stack_trace") == trace and _operator(node)]
    return part if part in written or len(same_place) != 1 else same_place[0]


def _decomposed(
    program: torch.export.ExportedProgram, opset: int
) -> tuple[torch.export.ExportedProgram, Callable[[Any], bool] | None]:
    """The program as torch.onnx decomposes it, and what it can translate: a part of an operator may fail.

    Returns:
        the program itself and None where this torch's own functions are other ones.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes, _registration

        with reused_operator_registry():
            registry = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
        return _fx_passes.decompose_with_registry(program, registry), cast("Any", registry).is_registered
    except Exception:  # torch's own, so it may change: then only what the exporter names is found
        return program, None


def _nodes(program: torch.export.ExportedProgram) -> Iterator[Any]:
    """The nodes of a program and of the branches in it."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def _operator(node: Any) -> str:
    target = node.target
    return str(target.name()).replace("::", ".") if isinstance(target, OpOverload) else ""


def _unsupported(node: Any, reason: str) -> UnsupportedNode:
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path = [entry[0] for entry in stack.values()][-1] if stack else ""
    frames = [(f, int(n)) for f, n in re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")]
    return UnsupportedNode(_operator(node), node.name, module_path(path), innermost_user_frame(frames), reason)
