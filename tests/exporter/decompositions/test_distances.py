"""Distances: PyTorch's, for every norm."""

from __future__ import annotations

import math

import pytest
import torch

from torch2engine.exporter.decompositions.distances import DISTANCES

NORMS = [0.0, 0.5, 1.0, 2.0, 3.0, math.inf]
GENERATOR = torch.Generator().manual_seed(0)
LEFT = torch.randn(2, 4, 3, generator=GENERATOR)
RIGHT = torch.randn(2, 5, 3, generator=GENERATOR)
MANY = torch.randn(30, 3, generator=GENERATOR)


@pytest.mark.parametrize("p", NORMS)
def test_distances_of_two_sets_are_pytorchs(p: float) -> None:
    """Batched, and of a set from itself, where the diagonal is exactly zero."""
    cdist = DISTANCES["_cdist_forward"]
    torch.testing.assert_close(cdist(LEFT, RIGHT, p, None), torch.cdist(LEFT, RIGHT, p))
    torch.testing.assert_close(cdist(LEFT, LEFT, p, None), torch.cdist(LEFT, LEFT, p))


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_distances_of_many_rows_are_pytorchs(mode: str) -> None:
    """By a matrix product or by differences, as PyTorch is told."""
    number = {"use_mm_for_euclid_dist": 1, "donot_use_mm_for_euclid_dist": 2}[mode]
    found = DISTANCES["_cdist_forward"](MANY, MANY + 1, 2.0, number)
    torch.testing.assert_close(found, torch.cdist(MANY, MANY + 1, compute_mode=mode))
    torch.testing.assert_close(DISTANCES["_cdist_forward"](MANY, MANY + 1), torch.cdist(MANY, MANY + 1))


@pytest.mark.parametrize("p", NORMS)
def test_distances_of_pairs_are_pytorchs(p: float) -> None:
    """Each pair once, in PyTorch's order."""
    torch.testing.assert_close(DISTANCES["_pdist_forward"](LEFT[0], p), torch.pdist(LEFT[0], p))


def test_matrix_product_is_for_more_than_25_rows() -> None:
    """Fewer are exact by differences, also far from the origin, where the product has lost the digits."""
    far = MANY + 4096
    for rows in (25, 26):
        x = far[:rows]
        exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").float()
        for cdist in (torch.cdist, DISTANCES["_cdist_forward"]):
            assert torch.allclose(cdist(x, x), exact, atol=1e-3) == (rows == 25)
