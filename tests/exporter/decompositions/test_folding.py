"""`fold`: PyTorch's sums of overlapping patches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from torch2engine.exporter.decompositions.folding import FOLDING


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "padding", "stride"),
    [
        ((6, 7), (2, 3), (1, 1), (0, 0), (1, 1)),
        ((7, 8), (3, 2), (1, 2), (1, 0), (2, 2)),
        ((8, 8), (2, 2), (1, 1), (0, 0), (3, 3)),
    ],
    ids=["overlapping", "padded and dilated", "with gaps and a rest"],
)
def test_patches_are_added_up(
    size: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    """With and without a batch."""
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    patches = functional.unfold(image, kernel, dilation, padding, stride)
    for part in (patches, patches[0]):
        expected = functional.fold(part, size, kernel, dilation, padding, stride)
        torch.testing.assert_close(FOLDING["col2im"](part, size, kernel, dilation, padding, stride), expected)
