"""nn.Transformer's layers with a causal mask are exported, over a dynamic length, and PyTorch is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer

from tests.support.models import error_of, exported
from torch2engine.core.spec import Axis
from torch2engine.exporter.given_masks import masks_as_given

LENGTH = {1: Axis("n", 2, 5, 9)}


class Decoder(nn.Module):
    """A decoder, then an encoder, that make their causal mask in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(self.decoder(x, memory, tgt_mask=mask), mask=mask)


def test_causal_mask_is_no_branch_on_values() -> None:
    """The mask is applied at every length."""
    artifact, cases = exported(Decoder(), (torch.randn(2, 5, 8), torch.randn(2, 4, 8)), {"x": LENGTH})
    assert error_of(artifact, cases) < 1e-5


def test_pytorchs_function_is_put_back() -> None:
    """After an error too; inside it repeats what the caller says."""
    before = transformer._detect_is_causal_mask

    def fail_inside() -> None:
        with masks_as_given():
            mask = nn.Transformer.generate_square_subsequent_mask(3)
            assert transformer._detect_is_causal_mask(mask) is False
            assert transformer._detect_is_causal_mask(mask, True) is True
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert transformer._detect_is_causal_mask is before
