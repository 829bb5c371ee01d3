"""A deployed module and its answers to a case → the answers without near ties of integers.

Enters: answers whose integer outputs differ from the reference's. Leaves: the same with the reference's integers where
the choice was a near tie. Separate because only this part of a comparison reads the module's ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.module_access import artifact_of
from torch2engine.onnx_graph.integer_choices import ChoiceReader
from torch2engine.parity.near_ties import near_ties
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["NearTies", "WithoutTies"]


@dataclass(frozen=True)
class WithoutTies:
    """Answers in which near ties have the reference's integers.

    Args:
        answers: by output name.
        ties: share of the elements of an output that were near ties.
    """

    answers: Mapping[str, torch.Tensor]
    ties: Mapping[str, float]


class NearTies:
    """Finds near ties in a module's integer outputs; its ONNX graph is read when the first integer differs.

    Args:
        candidate: the module.
    """

    def __init__(self, candidate: DeployedModule[Any]) -> None:
        self._artifact = artifact_of(candidate)

    @cached_property
    def _reader(self) -> ChoiceReader | None:
        path: Path | None = getattr(
            self._artifact, "checked_onnx_path", None
        )  # an engine may have come without its model
        return None if path is None else ChoiceReader(path)

    def without_ties(self, case: ParityCase, answers: Mapping[str, torch.Tensor], bounds: Bounds) -> WithoutTies:
        """Take the near ties out of the answers to a case.

        Args:
            case: with the reference's answers.
            answers: the candidate's.
            bounds: how far floating outputs may be off, and so the scores that integers are chosen from.
        """
        differing = [name for name, value in case.outputs.items() if _differs(value, answers.get(name))]
        choices = {} if self._reader is None or not differing else self._reader.choices
        chosen = [name for name in differing if name in choices]
        if self._reader is None or not chosen:
            return WithoutTies(answers, {})
        operands = self._reader.operands(self._arrays(case))
        mended = dict(answers)
        ties: dict[str, float] = {}
        for name in chosen:
            right = case.outputs[name].cpu().numpy()
            got = answers[name].cpu().numpy()
            mask = near_ties(right, got, choices[name], operands, bounds.of_output(name).near_tie)
            mended[name] = torch.from_numpy(np.where(mask, right, got))
            ties[name] = float(mask.mean())
        return WithoutTies(mended, ties)

    def _arrays(self, case: ParityCase) -> dict[str, Any]:
        """The inputs of a case as ONNX Runtime takes them; bfloat16 as float32."""
        leaves = [leaf.detach().cpu() for leaf in case.inputs]
        wide = [leaf.float() if leaf.dtype == torch.bfloat16 else leaf for leaf in leaves]
        specs = self._artifact.signature.inputs
        return {spec.name: leaf.numpy() for spec, leaf in zip(specs, wide, strict=True)}


def _differs(right: torch.Tensor, got: torch.Tensor | None) -> bool:
    """Whether both are integers or bools of one form, and differ."""
    if got is None or right.is_floating_point() or right.is_complex():
        return False
    return right.shape == got.shape and right.dtype == got.dtype and not torch.equal(right.cpu(), got.cpu())
