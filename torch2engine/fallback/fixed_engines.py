"""The engines of one part of a deployed model, for one set of weights.

Enters: the weights and the live tensors of a call. Leaves: the part's tensors, or `LeftInPyTorch`. Separate from
`tracking_engines` because only a refit changes the weights of these engines. No call compares weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2engine.core.errors import ParityError
from torch2engine.deployed.deployed_module import DeployedModule
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

__all__ = ["FixedEngines"]

_MOST_KNOWN = 256  # shapes; with sizes that depend on values there may be any number


@dataclass(frozen=True)
class _KnownCall:
    """What answers calls at shapes that were answered before.

    Args:
        module: the engine.
        order: where each input of the engine is among the part's live tensors.
    """

    module: DeployedModule[Any]
    order: tuple[int, ...]

    def answer(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Answer a call. An operator in PyTorch may have left other strides, which are no fast call of an engine."""
        ordered = [tensors[index] for index in self.order]
        return tuple(self.module.infer_flat([one if one.is_contiguous() else one.contiguous() for one in ordered]))


class FixedEngines:
    """The engines of one part.

    Args:
        graph_module: the part's graph.
        layout: how the graph is called.
        deploy_part: makes an engine for sizes that no engine holds; None for a model whose engines are all made.
    """

    def __init__(
        self, graph_module: fx.GraphModule, layout: GraphLayout, deploy_part: DeployPart | None = None
    ) -> None:
        self.runtime = ""  # the title of the runtime that has answered; "" before the first call
        self.versions = VersionsBySize[DeployedModule[Any]](layout)
        self._graph_module = graph_module
        self._layout = layout
        self._deploy_part = deploy_part
        self._slots = [layout.placeholders.index(name) for name in layout.tensors]
        self._known: dict[tuple[torch.Size, ...], _KnownCall] = {}

    def answer_known(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...] | None:
        """Answer a call at shapes that were answered before, in a few microseconds.

        Args:
            values: of all placeholders.

        Returns:
            the part's tensors; None for other shapes.
        """
        tensors = [values[slot] for slot in self._slots]
        known = self._known.get(tuple([tensor.shape for tensor in tensors]))
        return None if known is None else known.answer(tensors)

    def __call__(self, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Answer a call.

        Args:
            weights, tensors: by placeholder.

        Raises:
            LeftInPyTorch: no engine answers it.
        """
        require_elements(tensors)
        module = self.versions.find(self._layout.sizes(tensors))
        if module is None:
            module = self._deploy(weights, tensors)
        self.runtime = module.runtime
        outputs = answer_part(module, tensors)
        self._remember(module, tensors)
        return outputs

    def _deploy(self, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> DeployedModule[Any]:
        """Deploy an engine for a call at new sizes.

        Where the engine's answers are off, the operators that choose between floating values are blamed: rounding may
        lead to another choice. They stay in PyTorch then, and the others are tried again without them.

        Raises:
            LeftInPyTorch: there is none; it names those operators if answers were off.
        """
        if self._deploy_part is None:
            raise LeftInPyTorch("no engine was deployed for these sizes", is_final=False)
        call = PartCall(self._graph_module, self._layout, weights, tensors)
        try:
            return find_or_deploy(self.versions, call, self._deploy_part)
        except LeftInPyTorch as left:
            if not isinstance(left.__cause__, ParityError):
                raise
            worst = left.__cause__.got.partition(" | ")[0]
            choices = call.part().choices(f"with it the engine is off: {worst}")
            raise LeftInPyTorch(left.reason, choices) from left.__cause__

    def _remember(self, module: DeployedModule[Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Let later calls at these shapes find their engine at once."""
        if len(self._known) >= _MOST_KNOWN:
            self._known = {}
        names = list(tensors)
        order = tuple(names.index(spec.name) for spec in module.signature.inputs)
        self._known[tuple(tensor.shape for tensor in tensors.values())] = _KnownCall(module, order)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give every engine new weights, without a comparison.

        Args:
            weights: by placeholder; those of the part are among them.

        Raises:
            RefitError: an engine does not take them.
        """
        if not self._layout.weights:
            return
        own = {name: weights[name] for name in self._layout.placeholders if name in self._layout.weights}
        part = PartCall(self._graph_module, self._layout, own, {}).part()
        for version in self.versions.made():
            version.value.refit(part, verify=False)
