"""Counts of integers: PyTorch's of the same floating numbers."""

from __future__ import annotations

import torch

from torch2engine.exporter.decompositions.counting import COUNTING


def test_integers_are_counted_as_floats_are() -> None:
    """Each expert's tokens; floating numbers are torch.onnx's. PyTorch itself counts integers on a GPU only."""
    experts = torch.tensor([3, 0, 3, 2, 3, 0], dtype=torch.int32)
    counts = COUNTING["histc"](experts, bins=4, min=0, max=3)
    assert counts.dtype == torch.int32
    assert counts.tolist() == [2, 0, 1, 3]
    assert COUNTING["histc"](experts.float(), 4, 0, 3) is NotImplemented
