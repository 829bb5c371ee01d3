"""Floor division of sizes that may be negative, such as `-(-n // 4)`, which rounds n / 4 up.

Enters: a program of torch.export. Leaves: the same, dividing numbers that are never negative. Separate because these
are Python's operators on sizes, not PyTorch's on tensors. ONNX's Div would round them towards zero.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from torch2engine.exporter.decompositions.size_bounds import lowest

__all__ = ["floor_negative_sizes"]


def floor_negative_sizes(program: torch.export.ExportedProgram) -> None:
    """Replace a // b by (a + k * b) // b - k, with a k that makes the dividend positive; changes the program."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            divisions = [node for node in module.graph.nodes if node.target is operator.floordiv]
            for node in divisions:
                _raise_dividend(module.graph, node)
            if divisions:
                module.recompile()


def _raise_dividend(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    dividend, divisor = node.args
    least_dividend = lowest(_value(dividend))
    least_divisor = lowest(_value(divisor))
    if least_dividend is None or least_dividend >= 0 or least_divisor is None or least_divisor < 1:
        return
    shift = -(least_dividend // least_divisor)  # rounded up
    if isinstance(divisor, torch.fx.Node):
        shift = -least_dividend  # enough for any divisor

    def call(function: Any, left: Any, right: Any) -> torch.fx.Node:
        created = graph.call_function(function, (left, right))
        created.meta = {**node.meta, "val": function(_value(left), _value(right))}
        return created

    with graph.inserting_before(node):
        added = (
            call(operator.mul, divisor, shift) if isinstance(divisor, torch.fx.Node) else int(_value(divisor)) * shift
        )
        quotient = call(operator.floordiv, call(operator.add, dividend, added), divisor)
        result = call(operator.sub, quotient, shift)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _value(argument: Any) -> Any:
    """The size that a node stands for, or the number itself."""
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument
