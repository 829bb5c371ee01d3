"""Train a network, keep a moving average of its weights, and let one engine answer with either.

Enters: scikit-learn's digits. Leaves: for each epoch the accuracy of the raw and of the averaged weights, from one
deployed module that takes over the ones and the others.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torch2engine as t2e

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 16, dtype=torch.float32, device=device)
y = torch.tensor(labels, device=device)

model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)).to(device)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
module = t2e.deploy(
    model,
    x[:64],
    {"input": {0: t2e.Axis("batch", 1, 64, 512)}},
    runtime="tensorrt" if device == "cuda" else "onnxruntime",
    config=t2e.BuildConfig(refittable=True),
)


@torch.no_grad()
def right(network: nn.Module) -> int:
    return int((network(x[1347:]).argmax(1) == y[1347:]).sum())


optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    model.train()
    for batch in torch.randperm(1347, device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        average.update_parameters(model)
    model.eval()
    average.eval()
    found = {}
    for name, weights in (("raw", model), ("averaged", average.module)):
        module.refit(weights)
        assert not module.stale(weights)
        found[name] = right(module)
        assert abs(found[name] - right(weights)) <= 1, "a digit on the edge may fall to either side"
    print(f"epoch {epoch}: {found['raw']} of 450 with the raw weights, {found['averaged']} with their average")
assert found["averaged"] > 360
