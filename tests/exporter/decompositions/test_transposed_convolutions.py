"""Transposed convolutions with a stride and a dilation: PyTorch's, by a kernel with zeros between."""

from __future__ import annotations

import pytest
import torch

from torch2engine.exporter.decompositions.transposed_convolutions import TRANSPOSED_CONVOLUTIONS

GENERATOR = torch.Generator().manual_seed(0)
NAMES = {1: "conv_transpose1d", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}


@pytest.mark.parametrize("rank", NAMES)
def test_spread_kernel_is_a_dilated_one(rank: int) -> None:
    """With groups, bias and output padding; other forms are left to torch.onnx."""
    x = torch.randn([2, 4, *[5, 4, 3][:rank]], generator=GENERATOR)
    weight = torch.randn([4, 3, *[3, 2, 2][:rank]], generator=GENERATOR)
    bias = torch.randn(6, generator=GENERATOR)
    function = getattr(torch, f"conv_transpose{rank}d")
    found = TRANSPOSED_CONVOLUTIONS[NAMES[rank]](x, weight, bias, [2], [1], [1], 2, [3])
    torch.testing.assert_close(found, function(x, weight, bias, 2, 1, 1, 2, 3), rtol=1e-4, atol=1e-5)
    for stride, dilation in (([2], [1]), ([1], [2])):
        assert TRANSPOSED_CONVOLUTIONS[NAMES[rank]](x, weight, None, stride, [0], [0], 1, dilation) is NotImplemented
