"""`embedding_bag`: PyTorch's sums, means and maxima, with empty bags, weights and padding."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.bags import BAGS

ATEN = torch.ops.aten
TABLE = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([1, 2, 4, 5, 4, 3, 2, 8, 0])
OFFSETS = torch.tensor([0, 3, 3, 5])  # the second bag is empty


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [-1, 4])
@pytest.mark.parametrize(("offsets", "is_last_included"), [(OFFSETS, False), (torch.tensor([0, 3, 9]), True)])
def test_bags_are_reduced(mode: int, padding_idx: int, offsets: torch.Tensor, is_last_included: bool) -> None:
    """Rows of the padding index count nowhere."""
    arguments = (TABLE, INDICES, offsets, False, mode, False, None, is_last_included, padding_idx)
    torch.testing.assert_close(BAGS["_embedding_bag"](*arguments)[0], ATEN._embedding_bag(*arguments)[0])


def test_rows_are_weighted() -> None:
    """One weight for each index."""
    arguments = (TABLE, INDICES, OFFSETS, False, 0, False, torch.arange(9.0))
    torch.testing.assert_close(BAGS["_embedding_bag"](*arguments)[0], ATEN._embedding_bag(*arguments)[0])
