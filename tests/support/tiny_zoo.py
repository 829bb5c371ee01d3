"""Two models in the form of the zoo: one that becomes an engine, and one that no engine can have.

Enters: nothing. Leaves: `ZOO`. Apart because the processes of the sweep load it by name.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import BATCH, ZooEntry, floats

__all__ = ["ZOO"]


class Branches(nn.Module):
    """Its way depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


ZOO = {
    "linear": ZooEntry("plain", lambda: nn.Linear(3, 2), floats("batch", 3, name="input"), {"input": {0: BATCH}}),
    "branches": ZooEntry("plain", Branches, floats("batch", 3), {"x": {0: BATCH}}),
}
