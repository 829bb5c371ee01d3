"""The ways to run a live model in PyTorch, as a table: a name, and what is called in the model's place.

Enters: a module in evaluation mode, and a time limit. Leaves: a callable with the module's arguments. Separate because
whoever lets them compete iterates this table, so a further way is one row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from torch2engine.capture.shared_copy import SharedCopy
from torch2engine.core.time_limit import TimeLimit

__all__ = ["LIVE_PROGRAMS", "LiveProgram", "MakeProgram"]


@dataclass(frozen=True, kw_only=True)
class LiveProgram:
    """A way to run a live model.

    Args:
        title: its name, e.g. "torch.compile".
        weights: the model's copy, which has the model's own weights.
        call: what is called in its place.
        device: where the weights are.
        is_exact: whether float32 is computed in float32, whatever PyTorch's switches say.
        runtime_kind: the runtime whose tolerance its answers have, as for a `Backend`.
    """

    title: str
    weights: SharedCopy
    call: Callable[..., Any]
    device: torch.device
    is_exact: bool
    runtime_kind: str


MakeProgram: TypeAlias = "Callable[[nn.Module, TimeLimit], Callable[..., Any]]"
"""A module in evaluation mode, and when to stop → what is called in its place."""


def _in_eager(module: nn.Module, limit: TimeLimit) -> Callable[..., Any]:
    return module


def _compiled(module: nn.Module, limit: TimeLimit) -> Callable[..., Any]:
    """The module under torch.compile with its own backend, Inductor, in the default mode.

    Its mode "reduce-overhead" is not used: that overwrites earlier results, and belongs to one thread. CUDA graphs
    come from this package instead. The first size gets kernels of its own, and a second one those for a range.
    """

    compiler: Any = importlib.import_module("torch._inductor.compile_fx")  # takes a second

    def compile_in_time(graph: Any, inputs: Any) -> Any:
        limit.check("the compilation of a further graph")
        return compiler.compile_fx(graph, inputs)

    return cast("Any", torch.compile)(module, backend=compile_in_time)


LIVE_PROGRAMS = MappingProxyType({"PyTorch in eager": _in_eager, "torch.compile": _compiled})
"""The name of a way to run a live model → what makes it."""
