"""Train a network and evaluate with its engine after every epoch, without building again.

Enters: scikit-learn's digits. Leaves: for each epoch the accuracy in PyTorch and in the deployed module, which are
equal (a digit on the edge may fall to either side), and how long the module took to take over the new weights.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import torch2engine as t2e

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 16, dtype=torch.float32, device=device).reshape(-1, 1, 8, 8)
y = torch.tensor(labels, device=device)
train, test = slice(0, 1347), slice(1347, 1797)

model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
).to(device)
module = t2e.deploy(
    model,
    x[:64],
    {"input": {0: t2e.Axis("batch", 1, 64, 512)}},
    runtime="tensorrt" if device == "cuda" else "onnxruntime",
    config=t2e.BuildConfig(refittable=True),
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(5):
    model.train()
    for batch in torch.randperm(1347, device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[train][batch]), y[train][batch]).backward()
        optimizer.step()
    model.eval()
    assert module.stale(), "the optimizer has moved the weights"
    done = module.refit()  # the model is known from deploy()
    with torch.no_grad():
        wanted, found = (int((network(x[test]).argmax(1) == y[test]).sum()) for network in (model, module))
    print(f"epoch {epoch}: PyTorch {wanted}, {module.runtime} {found} of 450, refit in {1e3 * done.seconds:.1f} ms")
    assert abs(wanted - found) <= 1
assert wanted > 405
