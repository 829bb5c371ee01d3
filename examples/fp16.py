"""Deploy a CNN in float16: half the bytes, the same answers.

Enters: scikit-learn's digits, 8x8 pixels, and a CNN trained on them in float32. Leaves: the accuracy in float32 and in
float16, the size of both graphs on disk, and the report, whose parity tables are rounded after every operator. On a
machine with a GPU TensorRT answers, on one without ONNX Runtime. Needs the extra `quantize`.
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
parts = train_test_split(images.reshape(-1, 1, 8, 8) / 16, labels, test_size=0.25, random_state=0, stratify=labels)
x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in parts[:2])
y_train, y_test = (torch.tensor(part, device=device) for part in parts[2:])

front = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
model = nn.Sequential(*front, nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(6):
    for batch in torch.randperm(len(x_train), device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()

sample, axes = x_train[:64], {"input": {0: t2e.Axis("batch", min=1, opt=64, max=512)}}
full = t2e.deploy(model, sample, axes, runtime=runtime)
half = t2e.deploy(model, sample, axes, precision="fp16", calibration=x_train.split(64)[:4], runtime=runtime)
with torch.no_grad():
    expected, found = ((module(x_test).argmax(1) == y_test).float().mean().item() for module in (full, half))
with tempfile.TemporaryDirectory() as folder:
    for name, module in (("full", full), ("half", half)):
        module.save(f"{folder}/{name}.t2e")
    sizes = [Path(f"{folder}/{name}.t2e/model.onnx").stat().st_size for name in ("full", "half")]

print(f"accuracy on {len(x_test)} held-out digits: float32 {expected:.4f}, float16 {found:.4f}")
print(f"bytes on disk: float32 {sizes[0]}, float16 {sizes[1]}")
print(half.report)
assert found == expected > 0.95, "float16 reads digits as well as float32"
assert sizes[1] < 0.55 * sizes[0], "the weights take half the space"
assert half.report.lowering.kept == (), "no module had to stay in float32"
assert half(x_test).dtype == torch.float32, "inputs and outputs keep the model's own dtypes"
