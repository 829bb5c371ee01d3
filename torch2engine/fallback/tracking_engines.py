"""The engines of one graph of torch.compile: deployed at the first call, and again where weights or sizes change.

Enters: the weights and the live tensors of a call. Leaves: the graph's tensors, or `LeftInPyTorch` with the reason.
Separate from `fixed_engines`, whose weights no call compares.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from torch2engine.capture.fingerprint import WeightSnapshot, take_snapshot
from torch2engine.core.errors import Torch2EngineError
from torch2engine.core.user_warning import warn_user
from torch2engine.core.wording import first_line
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.fallback.deployable_graph import DeployableGraph
from torch2engine.fallback.graph_layout import GraphLayout
from torch2engine.fallback.part_call import (
    DeployPart,
    LeftInPyTorch,
    PartCall,
    answer_part,
    find_or_deploy,
    require_elements,
)
from torch2engine.fallback.size_versions import VersionsBySize

__all__ = ["TrackingEngines"]

_MOST_SETS = 64  # sets of weights; a graph that many layers share has one set for each layer


class _WeightSet:
    """The engines for one set of weights.

    Args:
        weights: by placeholder. They are not kept alive.
        snapshot: their values when the engines are built.
        layout: of the graph.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], snapshot: WeightSnapshot, layout: GraphLayout) -> None:
        self._tensors = tuple(map(weakref.ref, weights.values()))
        self.snapshot = snapshot
        self.versions = VersionsBySize[DeployedModule[Any]](layout)

    def is_held_by(self, weights: Mapping[str, torch.Tensor]) -> bool:
        """Whether these very tensors hold the weights, perhaps with new values."""
        pairs = zip(self._tensors, weights.values(), strict=True)
        return all(reference() is weight for reference, weight in pairs)

    def is_gone(self) -> bool:
        """Whether a tensor that held the weights was deleted."""
        return any(reference() is None for reference in self._tensors)


class TrackingEngines:
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
        self._weight_sets: list[_WeightSet] = []
        self._lock = threading.RLock()
        self._has_warned = False

    def answer_known(self, values: Sequence[Any]) -> None:
        """Answer no call: the weights may have changed, which only a whole call sees."""

    def __call__(self, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Answer a call.

        Args:
            weights, tensors: by placeholder.

        Raises:
            LeftInPyTorch: no engine answers it.
        """
        require_elements(tensors)
        call = PartCall(self._graph_module, self._layout, weights, tensors)
        with self._lock:
            module = find_or_deploy(self._weight_set(weights).versions, call, self._deploy_part)
        self.runtime = module.runtime
        return answer_part(module, tensors)

    def _weight_set(self, weights: Mapping[str, torch.Tensor]) -> _WeightSet:
        """The engines of these weights. New values in the same tensors replace the old ones.

        Raises:
            LeftInPyTorch: too many modules share this graph.
        """
        held = next((one for one in self._weight_sets if one.is_held_by(weights)), None)
        before = None if held is None or self._compares_values else held.snapshot
        snapshot = take_snapshot(weights, before)
        if held is None:
            self._weight_sets = [one for one in self._weight_sets if not one.is_gone()]
            if len(self._weight_sets) == _MOST_SETS:
                raise LeftInPyTorch(f"{_MOST_SETS} sets of weights have engines of this graph", is_final=False)
            held = _WeightSet(weights, snapshot, self._layout)
            self._weight_sets.append(held)
        elif held.snapshot.fingerprints != snapshot.fingerprints:
            held = self._with_new_values(held, weights, snapshot)
        held.snapshot = snapshot
        return held

    def _with_new_values(
        self, held: _WeightSet, weights: Mapping[str, torch.Tensor], snapshot: WeightSnapshot
    ) -> _WeightSet:
        """Refit the engines, or have them built anew where they can't be refitted."""
        part = DeployableGraph(self._graph_module, self._layout, weights)
        self._weight_sets.remove(held)  # no engine answers with the old values, even if a later step fails
        try:
            for version in held.versions.made():
                version.value.refit(part)
        except Torch2EngineError as error:
            if not self._has_warned:
                self._has_warned = True
                warn_user(
                    "weights have changed, so that an engine of torch.compile is built anew, which takes long; with "
                    f"options={{'config': t2e.BuildConfig(refittable=True)}} it is refitted ({first_line(error)})"
                )
            held = _WeightSet(weights, snapshot, self._layout)
        self._weight_sets.append(held)
        return held
