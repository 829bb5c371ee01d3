"""Deploy a net of linear layers in int8, calibrated on training images.

Enters: scikit-learn's digits, 8x8 pixels, and an MLP trained on them in float32. Leaves: the accuracy in float32 and in
int8, the size of both graphs on disk, and the report. On a machine with a GPU TensorRT answers, on one without ONNX
Runtime. TensorRT-RTX builds no int8 convolution, so there are none here. Needs the extra `quantize`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torch2engine as t2e

torch.manual_seed(0)
has_gpu = torch.cuda.is_available()
device, runtime = ("cuda", "tensorrt") if has_gpu else ("cpu", "onnxruntime")

images, labels = load_digits(return_X_y=True)
parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in parts[:2])
y_train, y_test = (torch.tensor(part, device=device) for part in parts[2:])

hidden = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
model = nn.Sequential(*hidden, nn.Linear(256, 10)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(12):
    for batch in torch.randperm(len(x_train), device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()

sample, axes = x_train[:64], {"input": {0: t2e.Axis("batch", min=1, opt=64, max=512)}}
full = t2e.deploy(model, sample, axes, runtime=runtime)
int8 = t2e.Precision("int8", method="percentile", percentile=99.99)
small = t2e.deploy(model, sample, axes, precision=int8, calibration=x_train.split(64)[:8], runtime=runtime)
with torch.no_grad():
    expected, found = ((module(x_test).argmax(1) == y_test).float().mean().item() for module in (full, small))
with tempfile.TemporaryDirectory() as folder:
    for name, module in (("full", full), ("small", small)):
        module.save(f"{folder}/{name}.t2e")
    sizes = [Path(f"{folder}/{name}.t2e/model.onnx").stat().st_size for name in ("full", "small")]

print(f"accuracy on {len(x_test)} held-out digits: float32 {expected:.4f}, int8 {found:.4f}")
print(f"bytes on disk: float32 {sizes[0]}, int8 {sizes[1]}")
print(small.report)
assert expected > 0.95 and found >= expected - 0.01, "int8 costs at most one point of accuracy"
assert sizes[1] < 0.3 * sizes[0], "the weights take a quarter of the space"
