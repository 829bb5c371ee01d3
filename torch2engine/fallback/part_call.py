"""One call of a graph, and the search for an engine that answers it; an engine is deployed where there is none.

Enters: a graph with the weights and the live tensors of a call. Leaves: a deployed module, or `LeftInPyTorch` with the
reason. Separate because engines that follow weights (`tracking_engines`) and engines of a deployed model
(`fixed_engines`) are deployed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from torch2engine.core.errors import BuildError, ExportError, InputError, ParityError, UnsupportedOperatorError
from torch2engine.core.wording import first_line
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import Obstacle
from torch2engine.fallback.deployable_graph import DeployableGraph
from torch2engine.fallback.dispatch_modes import dispatch_modes_off
from torch2engine.fallback.graph_layout import GraphLayout
from torch2engine.fallback.size_versions import Sizes, TooManySizesError, VersionsBySize, dynamic_axes

__all__ = ["DeployPart", "LeftInPyTorch", "PartCall", "answer_part", "find_or_deploy", "require_elements"]

DeployPart: TypeAlias = "Callable[[nn.Module, Mapping[str, torch.Tensor], Mapping[str, Any]], DeployedModule[Any]]"
"""deploy() with all options but the module, its sample and its dynamic axes."""

_REFUSALS = (ExportError, UnsupportedOperatorError, BuildError, ParityError, InputError)


class LeftInPyTorch(Exception):
    """A call that PyTorch must answer.

    Args:
        reason: a sentence for people.
        obstacles: the operators that have no engine, by their number in the graph; empty if none is to blame.
        is_final: whether every later call is left in PyTorch too.
    """

    def __init__(self, reason: str, obstacles: Mapping[int, Obstacle] | None = None, is_final: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.obstacles = dict(obstacles or {})
        self.is_final = is_final


@dataclass(frozen=True)
class PartCall:
    """One call of a graph.

    Args:
        graph_module: the graph; it writes into nothing.
        layout: how it is called.
        weights, tensors: of the call, by placeholder.
    """

    graph_module: fx.GraphModule
    layout: GraphLayout
    weights: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]

    def part(self) -> DeployableGraph:
        """The graph as a module with the weights of the call."""
        return DeployableGraph(self.graph_module, self.layout, self.weights)


def require_elements(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a call that no engine can answer.

    Raises:
        LeftInPyTorch: a tensor has no elements.
    """
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        raise LeftInPyTorch("a tensor without elements", is_final=False)


def answer_part(module: DeployedModule[Any], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The results of a part's engine, in the graph's order.

    Args:
        module: of `find_or_deploy`.
        tensors: by placeholder.
    """
    return module.infer_flat([tensors[spec.name] for spec in module.signature.inputs])


def find_or_deploy(
    engines: VersionsBySize[DeployedModule[Any]], call: PartCall, deploy_part: DeployPart
) -> DeployedModule[Any]:
    """Find the engine for a call of a graph, or deploy one.

    Args:
        engines: of the graph with these weights.
        call: of the graph.
        deploy_part: makes an engine.

    Raises:
        LeftInPyTorch: there is none, and none can be made.
    """
    sizes = call.layout.sizes(call.tensors)

    def deploy(largest: Sizes) -> DeployedModule[Any]:
        with dispatch_modes_off():
            return deploy_part(call.part(), call.tensors, dynamic_axes(call.layout, sizes, largest))

    try:
        return engines.find_or_make(sizes, deploy)
    except TooManySizesError as error:
        raise LeftInPyTorch(str(error), is_final=False) from error
    except UnsupportedOperatorError as error:
        raise LeftInPyTorch(first_line(error), call.part().obstacles_of(error.nodes)) from error
    except _REFUSALS as error:
        raise LeftInPyTorch(first_line(error)) from error
