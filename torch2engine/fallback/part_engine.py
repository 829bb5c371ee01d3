"""The engine of one graph: deployed at the first call, and again where weights or sizes change.

Enters: the weights and the live tensors of a call. Leaves: the graph's tensors, or `LeftInPyTorch` with the reason.
Separate because graphs of torch.compile, and parts of a larger program, follow weights and sizes in the same way.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from torch2engine.capture.fingerprint import WeightSnapshot, take_snapshot
from torch2engine.core.errors import (
    BuildError,
    ExportError,
    InputError,
    ParityError,
    Torch2EngineError,
    UnsupportedOperatorError,
)
from torch2engine.core.wording import first_line
from torch2engine.fallback.functional_graph import dispatch_modes_off
from torch2engine.fallback.graph_layout import GraphLayout
from torch2engine.fallback.graph_part import GraphPart
from torch2engine.fallback.size_versions import Sizes, TooManySizesError, VersionsBySize, dynamic_axes
from torch2engine.modules.deployed import DeployedModule
from torch2engine.modules.explanation import Obstacle
from torch2engine.pipeline.user_warning import warn_user

__all__ = ["DeployPart", "LeftInPyTorch", "PartCall", "PartEngine", "find_or_deploy"]

DeployPart: TypeAlias = "Callable[[nn.Module, Mapping[str, torch.Tensor], Mapping[str, Any]], DeployedModule[Any]]"
"""deploy() with all options but the module, its sample and its dynamic axes."""

_REFUSALS = (ExportError, UnsupportedOperatorError, BuildError, ParityError, InputError)
_MOST_SETS = 64  # sets of weights; a graph that many layers share has one set for each layer


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


class _SetOfWeights:
    """The engines for one set of weights.

    Args:
        weights: by placeholder. They are not kept alive.
        snapshot: their values when the engines are built.
        layout: of the graph.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], snapshot: WeightSnapshot, layout: GraphLayout) -> None:
        self._tensors = tuple(map(weakref.ref, weights.values()))
        self.snapshot = snapshot
        self.engines = VersionsBySize[DeployedModule[Any]](layout)

    def is_held_by(self, weights: Mapping[str, torch.Tensor]) -> bool:
        """Whether these very tensors hold the weights, perhaps with new values."""
        pairs = zip(self._tensors, weights.values(), strict=True)
        return all(reference() is weight for reference, weight in pairs)

    def is_gone(self) -> bool:
        """Whether a tensor that held the weights was deleted."""
        return any(reference() is None for reference in self._tensors)


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

    def part(self) -> GraphPart:
        """The graph as a module with the weights of the call."""
        return GraphPart(self.graph_module, self.layout, self.weights)


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


class PartEngine:
    """The engines of one graph. Threads may share it.

    Args:
        graph_module: the graph; it writes into nothing.
        layout: how it is called.
        deploy_part: makes an engine.
        compares_values: look for new weights by their values; otherwise by identity, address and autograd's version.
    """

    def __init__(
        self, graph_module: fx.GraphModule, layout: GraphLayout, deploy_part: DeployPart, compares_values: bool
    ) -> None:
        self.runtime = ""  # the title of the runtime that has answered; "" before the first call
        self._graph_module = graph_module
        self._layout = layout
        self._deploy_part = deploy_part
        self._compares_values = compares_values
        self._sets: list[_SetOfWeights] = []
        self._lock = threading.RLock()
        self._has_warned = False

    def __call__(self, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Answer a call.

        Args:
            weights, tensors: by placeholder.

        Raises:
            LeftInPyTorch: no engine answers it.
        """
        if any(tensor.numel() == 0 for tensor in tensors.values()):
            raise LeftInPyTorch("a tensor without elements", is_final=False)
        call = PartCall(self._graph_module, self._layout, weights, tensors)
        with self._lock:
            module = find_or_deploy(self._set_of(weights).engines, call, self._deploy_part)
        self.runtime = module.runtime
        return list(module.infer([tensors[spec.name] for spec in module.signature.inputs]).values())

    def _set_of(self, weights: Mapping[str, torch.Tensor]) -> _SetOfWeights:
        """The engines of these weights. New values in the same tensors replace the old ones.

        Raises:
            LeftInPyTorch: too many modules share this graph.
        """
        held = next((one for one in self._sets if one.is_held_by(weights)), None)
        before = None if held is None or self._compares_values else held.snapshot
        snapshot = take_snapshot(weights, before)
        if held is None:
            self._sets = [one for one in self._sets if not one.is_gone()]
            if len(self._sets) == _MOST_SETS:
                raise LeftInPyTorch(f"{_MOST_SETS} sets of weights have engines of this graph", is_final=False)
            held = _SetOfWeights(weights, snapshot, self._layout)
            self._sets.append(held)
        elif held.snapshot.fingerprints != snapshot.fingerprints:
            held = self._with_new_values(held, weights, snapshot)
        held.snapshot = snapshot
        return held

    def _with_new_values(
        self, held: _SetOfWeights, weights: Mapping[str, torch.Tensor], snapshot: WeightSnapshot
    ) -> _SetOfWeights:
        """Refit the engines, or have them built anew where they can't be refitted."""
        part = GraphPart(self._graph_module, self._layout, weights)
        self._sets.remove(held)  # no engine answers with the old values, even if a later step fails
        try:
            for version in held.engines.made():
                version.value.refit(part)
        except Torch2EngineError as error:
            if not self._has_warned:
                self._has_warned = True
                warn_user(
                    "weights have changed, so that an engine of torch.compile is built anew, which takes long; with "
                    f"options={{'config': t2e.BuildConfig(refittable=True)}} it is refitted ({first_line(error)})"
                )
            held = _SetOfWeights(weights, snapshot, self._layout)
        self._sets.append(held)
        return held
