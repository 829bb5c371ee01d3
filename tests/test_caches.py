"""Caches in and out: containers that a model fills anew, and those of Hugging Face's models, as PyTorch leaves them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, StaticCache

import torch2engine as t2e
from tests.support.deploy_models import sample
from torch2engine.core.pytree import flatten

BATCH = t2e.Axis("batch", 1, 2, 4)
PAST = {0: BATCH, 1: t2e.Axis("past", 1, 3, 12)}


@dataclass
class Layer:
    """One layer's state."""

    keys: Any
    calls: Any


class Growing(nn.Module):
    """Appends to keys in a dataclass in a list, and to a list; returns neither."""

    def forward(self, x: torch.Tensor, cache: list[Layer], log: dict[str, Any]) -> torch.Tensor:
        layer = cache[0]
        layer.keys = torch.cat([layer.keys, x[:, None]], 1)
        layer.calls = layer.calls + 1
        log["last"] = x * 2
        return layer.keys.mean(1) + log["first"]


def state(batch: int, past: int) -> tuple[list[Layer], dict[str, Any]]:
    """Arguments that are not empty."""
    return [Layer(sample(batch, past, 6), torch.tensor(past))], {"first": sample(batch, 6)}


@pytest.fixture(scope="module")
def growing() -> Any:
    """`Growing` on ONNX Runtime."""
    axes = {"x": {0: BATCH}, "cache.0.keys": PAST, "log.first": {0: "batch"}}
    return t2e.deploy(Growing(), (sample(2, 6), *state(2, 3)), axes, runtime="onnxruntime", cache=False)


def test_containers_are_filled_as_in_pytorch(growing: Any) -> None:
    """The caller's own list, dataclass and dict move on over several calls; what stayed is the caller's own tensor."""
    for batch, past in ((1, 1), (2, 3), (4, 9)):
        cache, log = state(batch, past)
        expected_cache, expected_log = state(batch, past)
        layer, first = cache[0], log["first"]
        for step in range(3):
            x = sample(batch, 6) + step
            expected = Growing()(x, expected_cache, expected_log)
            torch.testing.assert_close(growing(x, cache, log), expected)
            assert cache[0] is layer
            assert log["first"] is first
            assert list(log) == ["first", "last"]
            torch.testing.assert_close(layer.keys, expected_cache[0].keys)
            torch.testing.assert_close(log["last"], expected_log["last"])
            assert int(layer.calls) == past + step + 1
            del log["last"]  # the sample had none
            del expected_log["last"]


def test_contents_of_containers_are_compared_and_named(growing: Any, tmp_path: Path) -> None:
    """The flat call has them by name and changes nothing; a saved module fills them, too."""
    x, cache, log = sample(2, 6), *state(2, 3)
    keys = cache[0].keys
    answer = growing.infer([x, keys, cache[0].calls, log["first"]])
    assert list(answer) == ["output", "cache.0.keys.written", "cache.0.calls.written", "log.last.written"]
    assert cache[0].keys is keys
    assert {row.name for row in growing.report.parity[0].rows} == set(answer)
    growing.save(tmp_path / "growing.t2e")
    t2e.load(tmp_path / "growing.t2e")(x, cache, log)
    assert torch.equal(cache[0].keys, answer["cache.0.keys.written"])
    report = growing.benchmark(Growing(), sizes=[{"batch": 2, "past": 3}], rounds=2, calls=3, warmup=1)
    assert report.parity is not None and report.parity.passed


def test_container_that_cannot_change_is_refused(growing: Any) -> None:
    """A Mapping that is read-only passes for a dict elsewhere, but can't be filled."""
    x, cache, log = sample(2, 6), *state(2, 3)
    with pytest.raises(t2e.InputError) as error:
        growing(x, cache, MappingProxyType(log))
    assert str(error.value) == (
        "argument 'log': got a mappingproxy; expected a dict that can change, since the model fills it anew; "
        "pass the container that sample_input had"
    )
    assert cache[0].keys.shape == (2, 3, 6)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A decoder of two small layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def tokens(batch: int, count: int) -> torch.Tensor:
    """Some token ids."""
    return torch.arange(batch * count).reshape(batch, count) * 7 % 64


def filled(model: LlamaForCausalLM, cache: Any, batch: int, count: int) -> Any:
    """A cache that holds so many tokens."""
    with torch.no_grad():
        model(tokens(batch, count), past_key_values=cache, use_cache=True)
    return cache


def assert_same_tokens(model: LlamaForCausalLM, module: Any, cache: Any, counts: list[int]) -> None:
    """Let both go on with equal caches, and compare logits and caches after every call."""
    other = copy.deepcopy(cache)
    for count in counts:
        ids = tokens(len(cache.layers[0].keys), count)
        with torch.no_grad():
            expected = model(ids, past_key_values=other, use_cache=True)
            found = module(input_ids=ids, past_key_values=cache, use_cache=True)
        assert type(found) is type(expected)
        assert found.past_key_values is cache  # as in PyTorch
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        for layer, right in zip(cache.layers, other.layers, strict=True):
            torch.testing.assert_close((layer.keys, layer.values), (right.keys, right.values), rtol=1e-4, atol=1e-5)


def test_dynamic_cache_grows_in_the_callers_object(llama: LlamaForCausalLM) -> None:
    """Batch, past and new tokens are dynamic; the very cache that was passed is filled and returned."""
    cache = filled(llama, DynamicCache(), 2, 3)
    names = flatten(cache, "past_key_values").names
    axes: dict[str, Any] = {name: {0: BATCH, 2: t2e.Axis("past", 1, 3, 12)} for name in names}
    axes["input_ids"] = {0: "batch", 1: t2e.Axis("new", 1, 2, 4)}
    module = t2e.deploy(
        llama,
        {"input_ids": tokens(2, 2), "past_key_values": cache, "use_cache": True},
        axes,
        runtime="onnxruntime",
        cache=False,
    )
    assert cache.layers[0].keys.shape[2] == 3  # deploy leaves the sample as it was
    for batch, past in ((1, 1), (3, 5)):
        assert_same_tokens(llama, module, filled(llama, DynamicCache(), batch, past), [1, 4, 1])


class Attention(nn.Module):
    """One layer of attention with any of transformers' caches; makes a DynamicCache where it gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, cache: Any = None) -> Any:
        cache = DynamicCache() if cache is None else cache
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        start = cache.get_seq_length()
        position = torch.arange(x.shape[1], device=x.device) + start
        keys, values = cache.update(k, v, 0)
        mask = torch.arange(keys.shape[2], device=x.device)[None] <= position[:, None]
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)[:, 0], cache


@pytest.fixture(scope="module")
def attention() -> Attention:
    """A seeded layer."""
    torch.manual_seed(0)
    return Attention().eval()


def test_cache_that_a_model_makes_is_returned_in_its_own_type(attention: Attention) -> None:
    """A DynamicCache in the result can go into the next call of the PyTorch model."""
    axes = {"x": {0: BATCH, 1: t2e.Axis("n", 1, 3, 6)}}
    module = t2e.deploy(attention, sample(2, 3, 8), axes, runtime="onnxruntime", cache=False)
    _, cache = module(sample(3, 5, 8))
    _, expected = attention(sample(3, 5, 8))
    assert type(cache) is DynamicCache
    x = sample(3, 1, 8)
    torch.testing.assert_close(attention(x, cache)[0], attention(x, expected)[0], rtol=1e-4, atol=1e-5)


def test_static_cache_is_written_back(attention: Attention) -> None:
    """A StaticCache of any batch is written in place, position and all; without the option the model is refused."""
    config = LlamaConfig(num_hidden_layers=1)

    def static(batch: int, count: int) -> StaticCache:
        cache = StaticCache(config, max_cache_len=12)
        with torch.no_grad():
            attention(sample(batch, count, 8), cache)
        return cache

    inputs = (sample(2, 2, 8), static(2, 3))
    flat = flatten(inputs[1], "cache")
    axes: dict[str, Any] = {name: {0: BATCH} for name, leaf in zip(flat.names, flat.leaves, strict=True) if leaf.ndim}
    axes["x"] = {0: "batch", 1: t2e.Axis("new", 1, 2, 4)}
    with pytest.raises(t2e.ExportError, match=r"a write into its input 'cache\."):
        t2e.deploy(attention, inputs, axes, runtime="onnxruntime", cache=False)
    write_back = t2e.BuildConfig(mutations="write_back")
    module = t2e.deploy(attention, inputs, axes, runtime="onnxruntime", cache=False, config=write_back)
    cache, other = static(3, 4), static(3, 4)
    addresses = [leaf.data_ptr() for leaf in flatten(cache, "cache").leaves]
    for count in (1, 4, 2):
        x = sample(3, count, 8)
        with torch.no_grad():
            expected, _ = attention(x, other)
            found, returned = module(x, cache)
        assert returned is cache
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for left, right in zip(flatten(cache, "cache").leaves, flatten(other, "cache").leaves, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert addresses == [leaf.data_ptr() for leaf in flatten(cache, "cache").leaves]
    layer: Any = cache.layers[0]
    assert int(layer.cumulative_length) == 11


def test_sliding_cache_that_has_moved_on_is_refused() -> None:
    """Its registration as a pytree forgets how many tokens have passed, which PyTorch's positions follow."""
    config = MistralConfig(num_hidden_layers=1, sliding_window=4)
    cache = DynamicCache(config=config)
    cache.update(torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8), 0)
    assert flatten(cache, "cache").names == ["cache.key_cache.0", "cache.value_cache.0"]
    cache.update(torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8), 0)
    with pytest.raises(t2e.InputError) as error:
        flatten(cache, "cache")
    assert str(error.value).startswith(
        "DynamicCache: got layers[0].cumulative_length = 6, of which its registration as a pytree makes 3"
    )


class Counting(nn.Module):
    """Counts in a Python number how many tokens have passed."""

    def forward(self, x: torch.Tensor, log: dict[str, Any]) -> torch.Tensor:
        log["count"] = log["count"] + x.shape[0]
        return x * 2


def test_python_number_that_moves_on_by_a_size_is_refused() -> None:
    """It would be a constant of the engine, and wrong at every other size."""
    with pytest.raises(t2e.Torch2EngineError) as error:
        t2e.deploy(Counting(), (sample(2, 6), {"count": 3}), {"x": {0: BATCH}}, runtime="onnxruntime", cache=False)
    assert "argument 'log'" in str(error.value) or "'log.count'" in str(error.value)
