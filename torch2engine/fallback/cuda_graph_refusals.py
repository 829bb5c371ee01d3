"""A program whose operators run between engines → whether a CUDA graph may hold all of it.

Enters: operators with their fake values. Leaves: the reason against a capture, or "". Separate from
`deployed.whole_graph` because this is read from the graph alone, without a GPU.

A CUDA graph repeats the kernels of one call, and nothing that the host did. So it may hold no operator that looks at
values to decide about sizes, that draws random numbers, or that works on the CPU. PyTorch marks such operators by tags
(`torch.Tag`, aten/src/ATen/native/tags.yaml of torch 2.11 and 2.13). Operators of other libraries may do more on the
host than anybody can see, such as count their calls. PyTorch's own CUDA graphs take all of them but those with the tag
`cudagraph_unsafe`, under `torch.compile(mode="reduce-overhead")`; here, too, the user has to wish that.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload  # pyright: ignore[reportPrivateImportUsage]  # no public names
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from torch2engine.fallback.deployable_graph import operator_of
from torch2engine.fallback.graph_layout import fake_value

__all__ = ["reason_against_capture"]

_REASONS = {
    torch.Tag.cudagraph_unsafe: "is marked as unsafe in CUDA graphs",
    torch.Tag.data_dependent_output: "gives the host a value",
    torch.Tag.dynamic_output_shape: "has a result whose size depends on values",
    torch.Tag.nondeterministic_seeded: "draws random numbers",
}
# Indices are numbers, or masks, which the operator turns into numbers: then the host waits for their count.
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_unsafe_index_put")
_MASKS = (torch.bool, torch.uint8)
# Most of these wait for the GPU to see whether the computation has converged, or let a library on the CPU take part.
_MAY_WAIT = re.compile(
    r"aten::_?(linalg_(?!vector_norm|cross)|cholesky|lu_|svd|geqrf|orgqr|ormqr|lstsq|triangular_solve|histc|ctc_loss)"
)


def reason_against_capture(nodes: Iterable[fx.Node], is_forced: bool) -> str:
    """Say why no CUDA graph may hold all of a program.

    Args:
        nodes: its operators in PyTorch, with their fake values.
        is_forced: whether operators that may wait for the GPU, and those of other libraries, are tried, too.

    Returns:
        a clause about the first operator that forbids it; "" if none does.
    """
    for node in nodes:
        if node.op == "call_function" and (reason := _reason_against(node, is_forced)):
            return f"{operator_of(node)} {reason}"
    return ""


def _reason_against(node: fx.Node, is_forced: bool) -> str:
    """Why no CUDA graph may hold an operator; "" if one may."""
    target: object = node.target
    if isinstance(target, HigherOrderOperator) and node.args and isinstance(node.args[0], OpOverload):
        target = node.args[0]  # an operator that writes into its arguments, in a form without writes
    if any(_depends_on_values(value) for value in _values_of(node)):
        return _REASONS[torch.Tag.dynamic_output_shape]
    if isinstance(target, OpOverload):
        return _reason_against_operator(cast("OpOverload[Any, Any]", target), node, is_forced)
    computes = target is not operator.getitem and any(isinstance(value, torch.Tensor) for value in _values_of(node))
    return "is control flow, which the host decides" if computes else ""


def _reason_against_operator(target: OpOverload[Any, Any], node: fx.Node, is_forced: bool) -> str:
    name = target.name().partition(".")[0]
    tags = set(target.tags)
    if name in _INDEXING:
        tags.discard(torch.Tag.dynamic_output_shape)
        if any(_is_mask(index) for index in cast("Sequence[Any]", node.args[1])):
            tags.add(torch.Tag.dynamic_output_shape)
    if (reason := next((reason for tag, reason in _REASONS.items() if tag in tags), "")) or is_forced:
        return reason
    if target.namespace != "aten":
        return "is no operator of PyTorch's, so it may do more on the host than launch kernels"
    return "may wait for the GPU" if _MAY_WAIT.match(name) else ""


def _is_mask(index: object) -> bool:
    value = fake_value(index) if isinstance(index, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype in _MASKS


def _depends_on_values(value: object) -> bool:
    """Whether a number, or the size of a tensor, is known only once the GPU has computed something."""
    return isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)) and bool(
        free_unbacked_symbols(value)
    )


def _values_of(node: fx.Node) -> Iterator[object]:
    value = fake_value(node)
    yield from cast("Sequence[object]", value) if isinstance(value, (tuple, list)) else (value,)
