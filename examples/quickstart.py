"""Train a small CNN on handwritten digits, deploy it with a dynamic batch, and get the same answers.

Enters: scikit-learn's digits, 8x8 pixels. Leaves: the accuracy of the model and of what was deployed, and the parity
table. On a machine with a GPU TensorRT answers; on one without, its engine is built and ONNX Runtime answers.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torch2engine as t2e

torch.manual_seed(0)
has_gpu = torch.cuda.is_available()
device = "cuda" if has_gpu else "cpu"

images, labels = load_digits(return_X_y=True)
parts = train_test_split(images.reshape(-1, 1, 8, 8) / 16, labels, test_size=0.25, random_state=0, stratify=labels)
x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in parts[:2])
y_train, y_test = (torch.tensor(part, device=device) for part in parts[2:])


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


model = nn.Sequential(block(1, 16), block(16, 32), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(10):
    for batch in torch.randperm(len(x_train), device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()

sample, axes = x_train[:64], {"input": {0: t2e.Axis("batch", min=1, opt=64, max=512)}}
if has_gpu:
    module = t2e.deploy(model, sample, axes)
else:
    engine = t2e.build(t2e.export(model, sample, axes))
    print(f"without a GPU: {t2e.TRTModule(engine).runtime} built an engine of {len(engine.read_plan())} bytes")
    print("running it takes a GPU, so ONNX Runtime answers with the same graph")
    module = t2e.deploy(model, sample, axes, runtime="onnxruntime")


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    return (network(x_test).argmax(1) == y_test).float().mean().item()


model.eval()
expected, found = accuracy(model), accuracy(module)
print(f"accuracy on {len(x_test)} held-out digits: PyTorch {expected:.4f}, {module.runtime} {found:.4f}")
print(module.report)
assert found == expected > 0.95, "the deployed module reads digits as well as the model"
assert module.report.passed, "every output agrees with the model at every size that was asked for"
