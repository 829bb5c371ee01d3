"""Transformers' masks are traced as they are given, over a dynamic length, and the libraries are left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer
from transformers import BertConfig, masking_utils

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


class Masked(nn.Module):
    """Gives what Hugging Face's mask leaves of x; a mask that nobody gave shows as 1 more."""

    config = BertConfig(attn_implementation="sdpa")

    def forward(self, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        mask = masking_utils.create_bidirectional_mask(self.config, x, given)
        return x if mask is None else x * mask[:, 0, :1].mT + float(given is None)


def test_encoder_without_padding_gets_no_mask_as_in_pytorch() -> None:
    """Hugging Face makes one of True while a model is traced, which some of its own models can't take."""
    artifact, cases = exported(Masked(), (torch.randn(2, 5, 8),), {"x": LENGTH})
    assert error_of(artifact, cases) == 0


def test_encoder_with_padding_gets_its_mask() -> None:
    """Whether anything is padded is a matter of values, so that the mask always counts."""
    padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    artifact, cases = exported(Masked(), (torch.randn(2, 5, 8), padding), {"x": LENGTH, "given": LENGTH})
    assert error_of(artifact, cases) == 0
