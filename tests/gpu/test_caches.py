"""Caches that a model writes into or fills anew, on a real engine: over streams, views and CUDA graphs.

Enters: decoder-like models of our own, with static and growing caches. Leaves: proof that the caller's tensors and
containers are PyTorch's after every call. Apart from the CPU tests because streams and CUDA graphs are real here.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torch2engine as t2e

BATCH = t2e.Axis("batch", 1, 2, 4)
HEADS, WIDTH, LENGTH = 4, 64, 32
WRITE_BACK = t2e.BuildConfig(mutations="write_back")


class StaticDecoder(nn.Module):
    """Attention over a cache of fixed length that it writes into at `position`, which it counts up."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> Any:
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        places = position + torch.arange(count, device=x.device)
        keys.index_copy_(2, places, k)
        values.index_copy_(2, places, v)
        position.add_(count)
        mask = torch.arange(LENGTH, device=x.device)[None] <= places[:, None]
        y = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2)), keys


class GrowingDecoder(nn.Module):
    """Attention over a cache that grows in the caller's dict."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, cache: dict[str, torch.Tensor]) -> torch.Tensor:
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        cache["keys"] = torch.cat([cache["keys"], k], 2)
        cache["values"] = torch.cat([cache["values"], v], 2)
        y = functional.scaled_dot_product_attention(q, cache["keys"], cache["values"])
        return self.out(y.transpose(1, 2).flatten(2))


def tokens(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    """Embedded tokens."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(batch, count, WIDTH, generator=generator, device="cuda")


def static_state(batch: int) -> list[torch.Tensor]:
    """An empty static cache."""
    shape = (batch, HEADS, LENGTH, WIDTH // HEADS)
    return [torch.zeros(shape, device="cuda"), torch.zeros(shape, device="cuda"), torch.tensor([0], device="cuda")]


@pytest.fixture(scope="module")
def model() -> StaticDecoder:
    torch.manual_seed(0)
    return StaticDecoder().cuda().eval()


@pytest.fixture(scope="module")
def module(model: StaticDecoder) -> t2e.TRTModule:
    axes = {"x": {0: BATCH, 1: t2e.Axis("new", 1, 2, 4)}, "keys": {0: "batch"}, "values": {0: "batch"}}
    deployed = t2e.deploy(model, (tokens(2, 2), *static_state(2)), axes, config=WRITE_BACK)
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


def assert_same_steps(
    model: nn.Module, module: Any, state: list[torch.Tensor], counts: list[int], seed: int = 0
) -> None:
    """Let both go on from equal caches, and compare results and caches after each step."""
    expected_state = [leaf.clone() for leaf in state]
    for step, count in enumerate(counts):
        x = tokens(len(state[0]), count, seed + step)
        with torch.no_grad():
            expected, _ = model(x, *expected_state)
            found, keys = module(x, *state)
        assert keys is state[0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        for left, right in zip(state, expected_state, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_static_cache_moves_on_over_many_calls(model: StaticDecoder, module: t2e.TRTModule) -> None:
    """Calls of equal shapes come to be CUDA graphs on the way; the caller's tensors stay the same objects."""
    for batch in (1, 2, 4):
        assert_same_steps(model, module, static_state(batch), [4, *[1] * 20, 2], seed=batch)


def test_views_of_one_buffer_are_written_through(model: StaticDecoder, module: t2e.TRTModule) -> None:
    """Keys and values that interleave in one buffer get their values in their own places, and nothing else does."""
    buffer = torch.zeros(2, 3, HEADS, LENGTH, WIDTH // HEADS, device="cuda")
    buffer[:, 2] = 7
    state = [buffer[:, 0], buffer[:, 1], torch.tensor([0], device="cuda")]
    assert_same_steps(model, module, state, [2, 1, 1])
    assert bool((buffer[:, 2] == 7).all())
    assert bool(buffer[:, 1, :, 3].any())


def test_cache_is_written_on_the_callers_stream(model: StaticDecoder, module: t2e.TRTModule) -> None:
    """A side stream with slow work before the call, and a reader behind it, see the values in order."""
    stream = torch.cuda.Stream()
    state = static_state(2)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(20_000_000)
        x = tokens(2, 2)
        module(x, *state)
        read = state[0].clone()
        expected_state = static_state(2)
        expected, _ = model(x, *expected_state)
    stream.synchronize()
    assert expected.isfinite().all()
    torch.testing.assert_close(read, expected_state[0], rtol=1e-3, atol=1e-4)


def test_call_in_the_callers_cuda_graph_writes_the_cache(model: StaticDecoder, module: t2e.TRTModule) -> None:
    """Every replay moves the cache on by one token."""
    state, expected_state = static_state(1), static_state(1)
    x = tokens(1, 1)
    with torch.no_grad():
        module(x, *[leaf.clone() for leaf in state])  # prepares these shapes
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found, _ = module(x, *state)
        for step in range(4):
            x.copy_(tokens(1, 1, step))
            graph.replay()
            expected, _ = model(x, *expected_state)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state[0], expected_state[0], rtol=1e-3, atol=1e-4)
    assert int(state[2]) == 4
    del graph
    module.trim()


def test_threads_write_their_own_caches(model: StaticDecoder, module: t2e.TRTModule) -> None:
    """Calls in parallel, each on a stream and a cache of its own, don't mix."""
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                assert_same_steps(model, module, static_state(2), [2, 1, 1, 1], seed)
                torch.cuda.current_stream().synchronize()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_refused_inputs_are_not_written(module: t2e.TRTModule) -> None:
    """Overlap and expansion are refused before anything is enqueued, also once the fast path is warm."""
    x, state = tokens(2, 1), static_state(2)
    module(x, *[leaf.clone() for leaf in state])
    before = [leaf.clone() for leaf in state]
    with pytest.raises(t2e.InputError, match="memory that input"):
        module(x, state[0], state[0], state[2])
    with pytest.raises(t2e.InputError, match="several elements in one place"):
        module(x, state[0][:1].expand(2, -1, -1, -1), state[1], state[2])
    assert all(map(torch.equal, state, before))


def test_growing_cache_is_put_into_the_callers_dict() -> None:
    """Batch, past and new tokens are dynamic; the dict has PyTorch's new tensors after every call."""
    torch.manual_seed(0)
    model = GrowingDecoder().cuda().eval()

    def cache(batch: int, past: int) -> dict[str, torch.Tensor]:
        shape = (batch, HEADS, past, WIDTH // HEADS)
        return {"keys": torch.randn(shape, device="cuda"), "values": torch.randn(shape, device="cuda")}

    past = {0: BATCH, 2: t2e.Axis("past", 1, 4, 24)}
    axes = {"x": {0: "batch", 1: t2e.Axis("new", 1, 2, 4)}, "cache.keys": past, "cache.values": past}
    module = t2e.deploy(model, (tokens(2, 2), cache(2, 4)), axes)
    for batch, length in ((1, 1), (3, 5)):
        found_cache = cache(batch, length)
        expected_cache = dict(found_cache)
        for step, count in enumerate((1, 4, 1)):
            x = tokens(batch, count, step)
            with torch.no_grad():
                torch.testing.assert_close(module(x, found_cache), model(x, expected_cache), rtol=1e-3, atol=1e-4)
            for name, leaf in expected_cache.items():
                torch.testing.assert_close(found_cache[name], leaf, rtol=1e-3, atol=1e-4)


def test_processor_gives_the_new_values_by_name(module: t2e.TRTModule, tmp_path: Any) -> None:
    """Without PyTorch nothing is written into the caller's arrays: the new values are outputs."""
    module.save(tmp_path / "decoder.t2e")
    names = ("keys", "values", "position")
    x, state = tokens(2, 2), static_state(2)
    arrays = {name: leaf.cpu().numpy() for name, leaf in zip(("x", *names), (x, *state), strict=True)}
    with t2e.Processor(tmp_path / "decoder.t2e") as processor:
        answer = processor.infer(arrays)
    assert not arrays["keys"].any()
    module(x, *state)
    outputs = {write.input: write.output for write in module.signature.writes}
    for name, leaf in zip(names, state, strict=True):
        torch.testing.assert_close(torch.from_numpy(answer[outputs[name]]), leaf.cpu(), rtol=1e-3, atol=1e-4)
