"""Models in the form of the zoo: one becomes an engine, one can have none, and one ends its process.

Enters: nothing. Leaves: `ZOO`. Apart because the processes of the sweep load it by name.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from tests.zoo.entry import BATCH, ZooEntry, floats

__all__ = ["ZOO"]


class Branches(nn.Module):
    """Its way depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def _die() -> nn.Module:
    os._exit(7)


ZOO = {
    "linear": ZooEntry("plain", lambda: nn.Linear(3, 2), floats("batch", 3, name="input"), {"input": {0: BATCH}}),
    "branches": ZooEntry("plain", Branches, floats("batch", 3), {"x": {0: BATCH}}),
    "dies": ZooEntry("plain", _die, floats("batch", 3), {"x": {0: BATCH}}),
}
