"""Models in the form of the zoo: one becomes an engine, two are refused, one ends its process, one never ends.

Enters: nothing. Leaves: `ZOO`. Apart because the processes of the sweep load it by name.
"""

from __future__ import annotations

import os
import threading

import torch
from torch import nn

from tests.zoo.entry import BATCH, ZooEntry, floats

__all__ = ["ZOO"]


class Branches(nn.Module):
    """Its way depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Eigenvalues(nn.Module):
    """No engine takes its last operator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x)
        return torch.linalg.eigvalsh(rows.mT @ rows)


def _die() -> nn.Module:
    os._exit(7)


def _wait_for_ever() -> nn.Module:
    threading.Event().wait()
    raise AssertionError("nobody sets it")


ZOO = {
    "linear": ZooEntry("plain", lambda: nn.Linear(3, 2), floats("batch", 3, name="input"), {"input": {0: BATCH}}),
    "branches": ZooEntry("plain", Branches, floats("batch", 3), {"x": {0: BATCH}}),
    "eigenvalues": ZooEntry("plain", Eigenvalues, floats("batch", 3), {"x": {0: BATCH}}),
    "dies": ZooEntry("plain", _die, floats("batch", 3), {"x": {0: BATCH}}),
    "never_ends": ZooEntry("plain", _wait_for_ever, floats("batch", 3), {"x": {0: BATCH}}),
}
