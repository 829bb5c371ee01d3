"""Greedy decoding with one engine of two profiles, prefill and decode; the key-value cache is an input and an output.

Enters: a small random decoder like LLaMA. Leaves: PyTorch's own tokens, by calls whose cache is the next call's input.
"""

import time

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

import torch2engine as t2e

WIDTH, HEADS, LAYERS, VOCABULARY, LENGTH, PROMPT, STEPS = 64, 4, 2, 256, 256, 16, 200


def rotated(x: torch.Tensor, at: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    left, right, angles = *x.chunk(2, -1), at[:, None] * 10_000 ** -(places[: x.shape[-1] // 2] * 2 / x.shape[-1])
    return torch.cat([left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()], -1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Buffer(torch.arange(LENGTH))
        shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (2 * WIDTH, WIDTH)]
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(*s, bias=False) for s in shapes) for _ in range(LAYERS))

    def forward(self, tokens: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, kv, mask = self.embedding(tokens), list(cache.unbind()), self.places <= at[:, None]
        for layer, (qkv, out, gate_up, down) in enumerate(self.blocks):
            q, k, v = qkv(rms_norm(x, (WIDTH,))).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()
            kv[layer] = kv[layer].index_copy(3, at, torch.stack([rotated(k, at, self.places), v]))
            q = rotated(q, at, self.places)
            x = x + out(scaled_dot_product_attention(q, *kv[layer], mask).transpose(1, 2).flatten(2))
            gate, up = gate_up(rms_norm(x, (WIDTH,))).chunk(2, -1)
            x = x + down(silu(gate) * up)
        return x[:, -1] @ self.embedding.weight.T, torch.stack(kv)


torch.manual_seed(0)
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model, first = Decoder().requires_grad_(False), torch.arange(PROMPT)
    prompt, empty = torch.randint(VOCABULARY, (1, PROMPT)), torch.zeros(LAYERS, 2, 1, HEADS, LENGTH, WIDTH // HEADS)
axes, profiles = {"tokens": {1: "new"}, "at": {0: "new"}}, [{"new": (1, 1, 1)}, {"new": (2, PROMPT, PROMPT)}]
later = (prompt[:, :1], first[-1:] + 1, torch.randn_like(empty))  # an input of the decode profile
runtime = "tensorrt" if empty.is_cuda else "onnxruntime"
module = t2e.deploy(model, (prompt, first, empty), axes, profiles=profiles, examples=[later], runtime=runtime)
compiled = {"torch.compile": torch.compile(model)} if empty.is_cuda else {}
answers: dict[str, list[int]] = {}
for name, decoder in {module.runtime: module, "PyTorch eager": model, **compiled}.items():
    for steps in (2, STEPS):  # torch.compile works in the first calls
        tokens, at, cache, start = [prompt], first, empty, time.perf_counter()
        for _ in range(steps):
            logits, cache = decoder(tokens[-1], at, cache)  # two buffers in turn, and no copy between them
            tokens, at = [*tokens, logits.argmax(-1, keepdim=True)], at[-1:] + 1
        answers[name] = torch.cat(tokens[1:], 1)[0].tolist()
    print(f"{name}: {len(answers[name])} tokens, {STEPS / (time.perf_counter() - start):.0f} a second")
assert answers[module.runtime] == answers["PyTorch eager"]
