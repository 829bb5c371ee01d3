"""Decoders of transformers with a DynamicCache of any length, on a real engine.

Enters: small random models with grouped queries, sliding windows and experts. Leaves: proof that logits and caches are
PyTorch's at every step. Apart from `test_caches` because transformers' own models and caches go in here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

import torch2engine as t2e
from torch2engine.core.pytree import flatten

SIZES: Mapping[str, int] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS: Mapping[str, Mapping[str, int]] = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def tokens(batch: int, count: int) -> torch.Tensor:
    """(batch, count) int64 on the GPU: token ids, all rows different."""
    return torch.arange(batch * count, device="cuda").reshape(batch, count) * 7 % SIZES["vocab_size"]


def filled(model: Any, batch: int, count: int) -> DynamicCache:
    """A cache that holds so many tokens."""
    cache = DynamicCache()
    with torch.no_grad():
        model(tokens(batch, count), past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_goes_on_from_a_cache_of_any_length(kind: str) -> None:
    """Batch, past and new tokens are dynamic; logits and every layer's keys and values are PyTorch's."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).cuda().eval()
    cache = filled(model, 2, 3)
    past = t2e.Axis("past", 1, 3, 12)
    axes: dict[str, Any] = {
        name: {0: t2e.Axis("batch", 1, 2, 4), 2: past} for name in flatten(cache, "past_key_values").names
    }
    axes["input_ids"] = {0: "batch", 1: t2e.Axis("new", 1, 2, 4)}
    sample = {"input_ids": tokens(2, 2), "past_key_values": cache, "use_cache": True}
    module: Any = t2e.deploy(model, sample, axes)
    for batch, count in ((1, 1), (3, 5), (4, 7)):
        given = filled(model, batch, count)
        right = copy.deepcopy(given)
        for new in (1, 3, 1):
            ids = tokens(batch, new)
            with torch.no_grad():
                expected = model(ids, past_key_values=right, use_cache=True)
                found = module(input_ids=ids, past_key_values=given, use_cache=True)
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
            for layer, other in zip(given.layers, right.layers, strict=True):
                torch.testing.assert_close((layer.keys, layer.values), (other.keys, other.values), rtol=1e-3, atol=1e-4)
