"""Whether a graph of torch.compile only reads its inputs, and its form without writes where it does not.

Enters: a graph as dynamo gives it. Leaves: nodes that are written to, and AOTAutograd's form of the graph. Separate
because an engine leaves its inputs as they are: a write would be lost in it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch2engine.fallback.graph_layout import fake_value

__all__ = ["compile_functional_form", "has_writes", "written_placeholders"]

# PyTorch's functions that update running statistics without a sign in autograd's version.
_STATISTICS: dict[Any, str] = {functional.batch_norm: "training", functional.instance_norm: "use_input_stats"}


def written_placeholders(graph: fx.Graph) -> set[str]:
    """The placeholders that the graph writes to, by name."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    values = {node.name: fake_value(node) for node in nodes}
    written = {name for name, value in values.items() if isinstance(value, torch.Tensor) and value._version > 0}
    for node in graph.nodes:
        written |= _updated_statistics(node)
    return written


def has_writes(graph: fx.Graph) -> bool:
    """Whether the graph writes into any tensor, be it an input or one that it has made."""
    values = [fake_value(node) for node in graph.nodes]
    return any(isinstance(value, torch.Tensor) and value._version > 0 for value in values)


def _updated_statistics(node: fx.Node) -> set[str]:
    target: Any = node.target
    flag = _STATISTICS.get(target) if node.op == "call_function" else None
    if flag is None:
        return set()
    call = inspect.signature(target).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    if not call.arguments[flag]:
        return set()
    statistics = [call.arguments["running_mean"], call.arguments["running_var"]]
    return {tensor.name for tensor in statistics if isinstance(tensor, fx.Node)}


def compile_functional_form(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    compile_graph: Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    """Compile a graph without its writes; PyTorch writes into the inputs afterwards.

    Args:
        graph_module, example_inputs: as a backend of torch.compile gets them.
        compile_graph: compiles the form without writes.
    """
    # torch.onnx translates BatchNorm in training as if it were in inference (2.13).
    decompositions: Any = importlib.import_module("torch._decomp")
    statistics = decompositions.get_decompositions([torch.ops.aten._native_batch_norm_legit_functional])
    compiled: Any = aot_autograd(fw_compiler=compile_graph, inference_compiler=compile_graph, decompositions=statistics)
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel is an operator of its own, without a form in ONNX
        return compiled(graph_module, list(example_inputs))
