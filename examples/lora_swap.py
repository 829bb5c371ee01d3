"""One engine, several low-rank adapters: merge one, refit, answer, take it out again, fifty times.

Enters: a network and three adapters for it, all random. Leaves: answers with each adapter that are the model's, and
at the end, with none, the very answers of the beginning: nothing drifts.
"""

from __future__ import annotations

import torch
from torch import nn

import torch2engine as t2e

device = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, RANK, SWAPS = 256, 8, 50
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)).to(device).eval()
layers = (model[0], model[2])
base = [layer.weight.detach().clone() for layer in layers]
up, down = (torch.randn(3, 2, *shape, device=device) / 16 for shape in ((WIDTH, RANK), (RANK, WIDTH)))
adapters = up @ down  # of each adapter a product for each layer
x = torch.randn(32, WIDTH, device=device)
module = t2e.deploy(
    model,
    x,
    {"input": {0: "batch"}},
    runtime="tensorrt" if device == "cuda" else "onnxruntime",
    config=t2e.BuildConfig(refittable=True),
)


@torch.no_grad()
def merge(adapter: torch.Tensor) -> None:
    """Put an adapter's products onto the base, never onto what is there: adding and subtracting would drift."""
    for layer, weight, product in zip(layers, base, adapter, strict=True):
        layer.weight.copy_(weight + product)


with torch.no_grad():
    first, worst, milliseconds = module(x), 0.0, []
    for swap in range(SWAPS):
        merge(adapters[swap % len(adapters)])
        milliseconds.append(1e3 * module.refit().seconds)
        wanted = model(x)
        worst = max(worst, float((module(x) - wanted).norm() / wanted.norm()))
    merge(torch.zeros_like(adapters[0]))
    module.refit()
    drift = float((module(x) - first).abs().max())
median = sorted(milliseconds)[SWAPS // 2]
print(f"{SWAPS} swaps, {median:.1f} ms each (median); largest error {worst:.1e}, drift {drift}")
assert worst < 5e-3
assert drift == 0.0
